"""Jobs made through the HTTP route, beside acknowledged publishes through the same sidecar.

Same server, same 1 KiB of data, 32 connections each, a name of its own for each job; one kind after the other, in
turns. Every job is a month away, so none fires. By default a job must not take the place of another, unlike one with
`overwrite`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from benchmarks import load, stock, worker
from benchmarks.conditions import STREAM, Options, place
from benchmarks.events import DATA, HTTP_HEADERS, NUMBER, PLAIN_HEADERS, TOPIC, request
from benchmarks.processes import Sidecar
from benchmarks.report import Cost, Row, Target, compare

NAME = "schedule"
CONNECTIONS = 32
WARM_UP = 0.5
NIGHTLY = b'{"schedule":"CRON_TZ=Europe/Rome 0 0 3 * * *","dueTime":"%b","overwrite":%b,"data":%b}'


def run(options: Options) -> list[Row]:
    with place(options) as here, Sidecar(here.kinds[0], here.folder / "publish.log") as sidecar:
        sidecar.wait_until_accepting()
        jobs = Row(benchmark=NAME, name="jobs made, names that are new", unit="/s", target=Target(0.5))
        overwritten = Row(benchmark=NAME, name="jobs made with overwrite", unit="/s")
        publishes = Row(benchmark=NAME, name="acked publishes through the sidecar", unit="/s")
        kinds = (
            (jobs, _jobs("n", overwrite=False)),
            (overwritten, _jobs("o", overwrite=True)),
            (publishes, request(sidecar.publish_path(TOPIC), HTTP_HEADERS)),
        )
        for seconds in [WARM_UP] + [options.seconds] * options.runs:
            for row, sent in kinds:
                stock.run(stock.Purge(url=here.server.url, purge=STREAM))
                server, cpu = here.server.cpu(), sidecar.cpu()
                plan = load.Plan(port=sidecar.port, request=sent, connections=CONNECTIONS, seconds=seconds)
                result = worker.run("benchmarks.load", plan, load.Result)
                result.check()
                each = 1e6 / result.requests
                row.values.append(result.requests / result.elapsed)
                row.costs.append(
                    Cost(
                        client=result.cpu * each,
                        sidecar=(sidecar.cpu() - cpu) * each,
                        server=(here.server.cpu() - server) * each,
                    )
                )
        rows = [row for row, _ in kinds]
        for row in rows:
            del row.values[0], row.costs[0]  # the warm-up
        compare(rows[:2], publishes)
        return rows


def _jobs(beginning: str, *, overwrite: bool) -> bytes:
    """Templates of requests that each make a job of their own."""
    due = (datetime.now(UTC) + timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
    body = NIGHTLY % (due, str(overwrite).lower().encode(), DATA)
    return request(f"/v1.0/jobs/{beginning}{NUMBER.decode()}", PLAIN_HEADERS, body)
