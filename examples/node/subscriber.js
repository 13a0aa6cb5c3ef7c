// Subscribes to the topics A and B and prints every event. Node's own http module, nothing else.
const http = require("node:http");

const subscriptions = [
  { pubsubname: "pubsub", topic: "A", route: "/A" },
  { pubsubname: "pubsub", topic: "B", route: "/B" },
];

const server = http.createServer(async (request, response) => {
  if (request.method === "GET" && request.url === "/dapr/subscribe") {
    return answer(response, 200, subscriptions); // asked once, when the sidecar has found us
  }
  if (request.method === "POST" && subscriptions.some(({ route }) => route === request.url)) {
    let body = "";
    for await (const piece of request.setEncoding("utf8")) body += piece;
    const event = JSON.parse(body); // a CloudEvent
    console.log(`${event.topic}: ${JSON.stringify(event)}`);
    return answer(response, 200, { status: "SUCCESS" }); // or RETRY, or DROP
  }
  answer(response, 404, {});
});

function answer(response, status, content) {
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(content));
}

server.listen(process.env.APP_PORT ?? 6001, "127.0.0.1", () => console.log("listening"));
