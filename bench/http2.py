#!/usr/bin/env python3
"""One HTTP/2 hop through Envoy and lateen-proxy, side by side: HTTP/2 on both sides, one bootstrap.

    make bench                          (or: python3 bench/http2.py --rounds 3 --seconds 4 --record)

h2load keeps 8 connections with 16 streams each busy; the origin is an nginx that speaks HTTP/2 without TLS (a 100 byte body; with
--post the requests have a body of 100 bytes, too). The proxies have one worker each and take turns, round by round; the figures are
medians of the proxy's own CPU (/proc) divided by its requests. --also NAME=PROGRAM adds another lateen-proxy, such as one of an
earlier commit.
"""
import argparse, datetime, os, re, statistics, subprocess, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from onehop import BIN, BOOTSTRAP, ENVOY, HERE, NGINX, ORIGIN_BODY, cpu, end, rss, write

ORIGIN, PORT = 18090, 18091
HTTP2 = """    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }
"""


def load(port, seconds, body):
    command = ["h2load", "-c8", "-m16", "-t1", f"-D{seconds}", "--warm-up-time=0"] + (["-d", body] if body else [])
    out = subprocess.run(command + [f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=True).stdout
    counts = re.search(r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", out)
    done, succeeded, failed, errored = map(int, counts.groups())
    if not done:
        sys.exit(f"h2load measured nothing on port {port}:\n{out}")
    return {"requests": done, "rps": done / seconds, "failed": failed + errored + done - succeeded}


def wait_ready(port, proc, log):
    for _ in range(200):
        if proc.poll() is not None:
            sys.exit(f"it stopped with {proc.returncode}:\n" + open(log).read()[-2000:])
        probe = ["h2load", "-n1", "-c1", f"http://127.0.0.1:{port}/"]
        if "1 succeeded" in subprocess.run(probe, capture_output=True, text=True).stdout:
            return
        time.sleep(0.05)
    sys.exit(f"nothing answers on port {port}; see {log}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=int, default=4)
    ap.add_argument("--post", action="store_true")
    ap.add_argument("--also", action="append", default=[], metavar="NAME=PROGRAM")
    ap.add_argument("--record", action="store_true", help="append the table to bench/RESULTS.md")
    args = ap.parse_args()
    programs = {"envoy": ENVOY, "lateen": f"{BIN}/lateen-proxy"} | dict(also.split("=", 1) for also in args.also)
    figures = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        origin = NGINX.format(dir=d, name="origin", extra=(
            f"server {{ listen 127.0.0.1:{ORIGIN} http2 backlog=1024; location / {{ default_type text/plain; return 200 '{ORIGIN_BODY}'; }} }}"))
        commands = {"origin": ["nginx", "-c", write(f"{d}/origin.conf", origin), "-p", d]}
        ports = {"origin": ORIGIN}
        for index, (name, program) in enumerate(programs.items()):
            ports[name] = PORT + index
            boot = BOOTSTRAP.format(port=ports[name], admin=ports[name] + 100, origin=ORIGIN) + HTTP2
            commands[name] = [program, "-c", write(f"{d}/{name}.yaml", boot), "--concurrency", "1"]
            commands[name] += ["--log-level", "error", "--use-dynamic-base-id"] if name == "envoy" else []
        body = write(f"{d}/body", "y" * 100) if args.post else None
        procs = {}
        try:
            for name, command in commands.items():
                log = f"{d}/{name}.log"
                procs[name] = subprocess.Popen(command, stdout=open(log, "w"), stderr=subprocess.STDOUT)
                wait_ready(ports[name], procs[name], log)
            for name in programs:
                load(ports[name], 1, body)
            for turn in range(args.rounds):
                for name in programs:
                    before = cpu(procs[name].pid)
                    r = load(ports[name], args.seconds, body)
                    r["cpu"] = (cpu(procs[name].pid) - before) / r["requests"] * 1e6
                    figures[name].append(r)
                    print(f"round {turn + 1}: {name:8} {r['rps']:8.0f} rps  {r['cpu']:6.1f} us CPU/request", file=sys.stderr)
            memory = {name: rss(procs[name].pid) for name in programs}
        finally:
            end(procs.values())

    med = lambda name, key: statistics.median(r[key] for r in figures[name])
    lines = ["| proxy | requests/s | CPU µs/request | × Envoy | loaded MiB | failed |", "|---|---|---|---|---|---|"]
    for name in programs:
        lines.append(f"| {name} | {med(name, 'rps'):.0f} | {med(name, 'cpu'):.1f} | {med(name, 'cpu') / med('envoy', 'cpu'):.2f} | "
                     f"{memory[name]:.1f} | {sum(r['failed'] for r in figures[name])} |")
    table = "\n".join(lines)
    print(table)
    if args.record:
        what = "POST of 100 bytes" if args.post else "GET"
        with open(os.path.join(HERE, "RESULTS.md"), "a") as f:
            f.write(f"\n### One hop HTTP/2, {what}, 8 connections × 16 streams, 1 worker — {datetime.date.today()} "
                    f"({args.rounds} × {args.seconds} s, {os.cpu_count()} shared cores)\n{table}\n")


if __name__ == "__main__":
    main()
