#!/usr/bin/env python3
"""One HTTP/1.1 hop through nginx, HAProxy, Envoy and lateen-proxy, side by side.

    make bench                          (or: python3 bench/onehop.py --rounds 3 --seconds 4 --record)

Each proxy runs with one worker in front of the same nginx origin (a 100 byte body) and gets the same load
(wrk, 64 connections). The proxies take turns, round by round, so that a slow minute of a shared machine hits all of
them; the table shows medians. CPU is the proxy's own (user + system, from /proc), divided by the requests it served:
that, and the ratio to Envoy's, are the figures to quote. Envoy and lateen-proxy read the same bootstrap file.
"""
import argparse, datetime, os, re, shutil, signal, statistics, subprocess, sys, tempfile, time, urllib.request

ORIGIN, PORTS = 18080, {"nginx": 18081, "haproxy": 18082, "envoy": 18083, "lateen": 18084}
TICK = os.sysconf("SC_CLK_TCK")
TOOLS = os.environ.get("LATEEN_TOOLS", "/var/cache/lateen/tools")
ENVOY = os.environ.get("LATEEN_ENVOY_PATH", f"{TOOLS}/envoy-1.40.0/envoy")
HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.environ.get("LATEEN_BIN", os.path.join(HERE, "..", "target", "release"))

NGINX = """
daemon off; worker_processes 1; pid {dir}/{name}.pid; error_log {dir}/{name}.err;
events {{ worker_connections 1024; }}
http {{ access_log off; client_body_temp_path {dir}/{name}-body; proxy_temp_path {dir}/{name}-proxy;
  fastcgi_temp_path {dir}/{name}-f; uwsgi_temp_path {dir}/{name}-u; scgi_temp_path {dir}/{name}-s;
  keepalive_requests 100000000; {extra} }}
"""
ORIGIN_BODY = "x" * 100
BOOTSTRAP = """
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
static_resources:
  listeners:
  - name: main
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config:
            name: main
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [ {{ match: {{ prefix: "/" }}, route: {{ cluster: origin }} }} ]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: origin
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: origin
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {origin} }} }} }}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend main
  bind 127.0.0.1:{port}
  default_backend origin
backend origin
  server o 127.0.0.1:{origin}
"""


def write(path, text):
    with open(path, "w") as f:
        f.write(text)
    return path


def commands(d):
    origin = NGINX.format(dir=d, name="origin", extra=f"server {{ listen 127.0.0.1:{ORIGIN} backlog=1024; location / {{ default_type text/plain; return 200 '{ORIGIN_BODY}'; }} }}")
    nginx = NGINX.format(dir=d, name="nginx", extra=(
        f"upstream o {{ server 127.0.0.1:{ORIGIN}; keepalive 128; keepalive_requests 100000000; }} server {{ listen 127.0.0.1:{PORTS['nginx']} backlog=1024; "
        "location / { proxy_pass http://o; proxy_http_version 1.1; proxy_set_header Connection ''; } }"))
    boot = {n: write(f"{d}/{n}.yaml", BOOTSTRAP.format(port=PORTS[n], admin=PORTS[n] + 100, origin=ORIGIN)) for n in ("envoy", "lateen")}
    return {
        "origin": ["nginx", "-c", write(f"{d}/origin.conf", origin), "-p", d],
        "nginx": ["nginx", "-c", write(f"{d}/nginx.conf", nginx), "-p", d],
        "haproxy": ["haproxy", "-db", "-f", write(f"{d}/haproxy.cfg", HAPROXY.format(port=PORTS["haproxy"], origin=ORIGIN))],
        "envoy": [ENVOY, "-c", boot["envoy"], "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"],
        "lateen": [f"{BIN}/lateen-proxy", "-c", boot["lateen"], "--concurrency", "1"],
    }


def family(pid):
    """The process and its children (nginx's worker, HAProxy's none)."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            kids = [int(x) for x in f.read().split()]
    except FileNotFoundError:
        return []
    return [pid] + [g for k in kids for g in family(k)]


def cpu_parts(pid):
    """CPU seconds in the program itself and in the kernel on its behalf."""
    own = kernel = 0
    for p in family(pid):
        with open(f"/proc/{p}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        own, kernel = own + int(fields[11]), kernel + int(fields[12])
    return own / TICK, kernel / TICK


def cpu(pid):
    return sum(cpu_parts(pid))


def rss(pid):
    total = 0
    for p in family(pid):
        with open(f"/proc/{p}/status") as f:
            total += int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))
    return total / 1024


def wait_ready(port, proc, name, log):
    for _ in range(200):
        if proc.poll() is not None:
            sys.exit(f"{name} stopped with {proc.returncode}; its words are in {log}:\n" + open(log).read()[-2000:])
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as r:
                assert len(r.read()) == 100
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"{name} does not answer on port {port}; see {log}")


def seconds_of(text):
    value, unit = re.match(r"([\d.]+)(us|ms|s)", text).groups()
    return float(value) * {"us": 1e-6, "ms": 1e-3, "s": 1}[unit]


def load(port, seconds, connections):
    out = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{port}/"],
                         capture_output=True, text=True, check=True).stdout
    if not re.search(r"^\s+99%\s+[\d.]+(us|ms|s)", out, re.M):
        sys.exit(f"wrk measured nothing on port {port}:\n{out}")
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", out)
    failed = (int(bad.group(1)) if bad else 0) + (sum(map(int, errors.groups())) if errors else 0)
    return {
        "requests": int(re.search(r"(\d+) requests in", out).group(1)),
        "rps": float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1)),
        "p50": seconds_of(re.search(r"^\s+50%\s+(\S+)", out, re.M).group(1)),
        "p99": seconds_of(re.search(r"^\s+99%\s+(\S+)", out, re.M).group(1)),
        "failed": failed,
    }


def end(procs):
    for p in procs:
        p.send_signal(signal.SIGTERM)
    for p in procs:
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            p.kill()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--seconds", type=int, default=4)
    ap.add_argument("--connections", type=int, default=64)
    ap.add_argument("--record", action="store_true", help="append the table to bench/RESULTS.md")
    args = ap.parse_args()
    for program in ("nginx", "haproxy", "wrk", ENVOY, f"{BIN}/lateen-proxy"):
        if not shutil.which(program):
            sys.exit(f"{program} is missing: run scripts/install-tools.sh bench, and make build")

    names = list(PORTS)
    figures = {n: [] for n in names}
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        procs = {}
        try:
            for name, command in commands(d).items():
                log = f"{d}/{name}.log"
                procs[name] = subprocess.Popen(command, stdout=open(log, "w"), stderr=subprocess.STDOUT)
                wait_ready(ORIGIN if name == "origin" else PORTS[name], procs[name], name, log)
            time.sleep(1)
            idle = {n: rss(procs[n].pid) for n in names}
            for n in names:
                load(PORTS[n], 1, args.connections)
            for i in range(args.rounds):
                for n in names:
                    before = cpu_parts(procs[n].pid)
                    r = load(PORTS[n], args.seconds, args.connections)
                    own, kernel = ((now - then) / r["requests"] * 1e6 for now, then in zip(cpu_parts(procs[n].pid), before))
                    r |= {"cpu": own + kernel, "kernel": kernel}
                    figures[n].append(r)
                    print(f"round {i + 1}: {n:8} {r['rps']:8.0f} rps  {r['cpu']:6.1f} us CPU/request", file=sys.stderr)
            busy = {n: rss(procs[n].pid) for n in names}
        finally:
            end(procs.values())

    med = lambda n, k: statistics.median(r[k] for r in figures[n])
    envoy = med("envoy", "cpu")
    lines = ["| proxy | requests/s | p50 ms | p99 ms | CPU µs/request | of it the kernel's | × Envoy | idle MiB | loaded MiB | failed |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for n in names:
        lines.append(f"| {n} | {med(n, 'rps'):.0f} | {med(n, 'p50') * 1e3:.2f} | {med(n, 'p99') * 1e3:.2f} | {med(n, 'cpu'):.1f} | "
                     f"{med(n, 'kernel'):.1f} | {med(n, 'cpu') / envoy:.2f} | {idle[n]:.1f} | {busy[n]:.1f} | {sum(r['failed'] for r in figures[n])} |")
    table = "\n".join(lines)
    print(table)
    if args.record:
        with open(os.path.join(HERE, "RESULTS.md"), "a") as f:
            f.write(f"\n### One hop HTTP/1.1, {args.connections} connections, 1 worker — {datetime.date.today()} "
                    f"({args.rounds} × {args.seconds} s, {os.cpu_count()} shared cores)\n{table}\n")


if __name__ == "__main__":
    main()
