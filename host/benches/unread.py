#!/usr/bin/env python3
"""Measures how often a response counts as received although its caller never read it.

    cargo build --release --bin triage
    python3 host/benches/unread.py target/release/triage [REQUESTS]

Callers without keys time out at random moments around the arrival of the response, close their connection and repeat the request. If
Triage noticed that the response was not read, the repetition adopts it (`triage-adopted`). Otherwise the response counts as received,
and the repetition is another write.

Prints these counts and the width of the window: the share of callers that timed out in it, times the range of their timeouts.
Everything runs on loopback with Python's http.client, which requests and urllib3 are built on. Over a network the window is longer by
about one round trip, and by the time in which the sockets' buffers fill if a response arrives slowly. Stops the processes it started.
"""

import http.client
import http.server
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import time

DELAY_S = 0.030
"""The delay of the upstream before its response."""
SPREAD_S = 0.020
"""The range of the timeouts. It includes DELAY_S and the time of transfer."""
CALLERS = 4


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A response is one segment; a delayed acknowledgement would add 40 ms to some of them.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        # Python's timeouts are whole milliseconds, and a response may arrive between two of them.
        time.sleep(DELAY_S + random.uniform(0, 0.001))
        self.send_response(201)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "12")
        self.end_headers()
        self.wfile.write(b'{"made": 1}\n')

    def log_message(self, *_):
        pass


def serve(ready):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    ready.put(server.server_address[1])
    server.serve_forever()


def post(port, row, timeout_s):
    """The response's status and whether it was adopted; none if it was not read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", "/rows", body=row, headers={"content-type": "text/plain"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers.get("triage-adopted") == "true"
    except (TimeoutError, ConnectionError):
        return None
    finally:
        connection.close()


def median_s(port, caller):
    took = []
    for number in range(100):
        began = time.monotonic()
        post(port, f"first-{caller}-{number}", 10)
        took.append(time.monotonic() - began)
    return sorted(took)[len(took) // 2]


def call(port, caller, requests, results):
    random.seed(caller)
    around_s = median_s(port, caller)
    counts = {"around_s": around_s, "read": 0, "adopted": 0, "unread": 0, "other": 0}
    for number in range(requests):
        row = f"{caller}-{number}"
        if post(port, row, around_s + random.uniform(-0.5, 0.5) * SPREAD_S):
            counts["read"] += 1
            continue
        again = post(port, row, 10)
        if again is None or again[0] != 201:
            counts["other"] += 1
        else:
            counts["adopted" if again[1] else "unread"] += 1
    results.put(counts)


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def main():
    triage, requests = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    ready, results = multiprocessing.Queue(), multiprocessing.Queue()
    upstream = multiprocessing.Process(target=serve, args=(ready,), daemon=True)
    upstream.start()
    port, host = free_port(), None
    with tempfile.TemporaryDirectory() as work:
        config = os.path.join(work, "triage.toml")
        with open(config, "w") as file:
            file.write(
                f'[server]\nlisten = "127.0.0.1:{port}"\n[upstreams.rows]\nbase_url = "http://127.0.0.1:{ready.get()}"\n'
                "[upstreams.rows.defaults]\nbreaker = { enabled = false }\n"
            )
        try:
            host = subprocess.Popen([triage, "serve", "--config", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while post(port, "warm", 10) is None:
                time.sleep(0.05)
            each = requests // CALLERS
            callers = [
                multiprocessing.Process(target=call, args=(port, caller, each, results), daemon=True)
                for caller in range(CALLERS)
            ]
            for caller in callers:
                caller.start()
            counts = [results.get() for _ in callers]
        finally:
            if host:
                host.terminate()
                host.wait()
            upstream.terminate()
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    around_s = total.pop("around_s") / CALLERS
    asked = sum(total.values())
    print(f"{asked} writes, answers after {around_s * 1e3:.1f} ms (median), timeouts within {SPREAD_S * 1e3:.0f} ms around that")
    print(", ".join(f"{name} {count}" for name, count in total.items()))
    print(f"handed over and never read: {total['unread'] / asked:.3%}, a window of {total['unread'] / asked * SPREAD_S * 1e6:.0f} us")


if __name__ == "__main__":
    main()
