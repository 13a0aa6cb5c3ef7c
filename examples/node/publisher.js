// Publishes one event to topic A and one to topic B through the sidecar beside it.
const http = require("node:http");

function publish(topic, data) {
  return new Promise((resolve, reject) => {
    const request = http.request({
      host: "127.0.0.1",
      port: process.env.DAPR_HTTP_PORT ?? 3500,
      method: "POST",
      path: `/v1.0/publish/pubsub/${topic}`,
      headers: { "content-type": "application/json" },
    });
    request.on("error", reject);
    request.on("response", (response) => {
      response.resume();
      if (response.statusCode === 204) resolve(); // the broker has stored the event
      else reject(new Error(`the sidecar answered ${response.statusCode}`));
    });
    request.end(JSON.stringify(data));
  });
}

async function main() {
  for (const topic of ["A", "B"]) {
    await publish(topic, { message: `hello ${topic}`, status: "completed" });
    console.log(`published to ${topic}`);
  }
}

main().catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
