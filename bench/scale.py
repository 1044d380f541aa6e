#!/usr/bin/env python3
"""One proxy with 5,000 services: memory, time to ready, time until a route change is live, cost of a request.

    cargo build --release -p lateen-agent && cargo build --release -p lateen-control --example scale_ads
    python3 bench/scale.py [--services 5000] [--record]

lateen-proxy and Envoy get the same clusters, endpoints, listener and routes (3 for each host) by delta ADS from the same
server (crates/control/examples/scale_ads.rs), in turns. Ready is when the last host answers, from the start of the process. A
change is one route of the last host among all of them; it is live when the first answer follows it, from the moment the
server is told (which encodes the routes of that host, and sends those of all); CPU is the proxy's own. Cost of a request: wrk at the last host, CPU of the proxy by the requests it served.
"""
import argparse, datetime, json, os, statistics, subprocess, sys, tempfile, time, urllib.request
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from onehop import BIN, ENVOY, HERE, NGINX, cpu, rss, write

ORIGIN, PORTS = 18090, {"envoy": 18091, "lateen": 18092}


ADS = os.environ.get("LATEEN_SCALE_ADS", os.path.join(BIN, "examples", "scale_ads"))
ADS_PORT = 18099


def host(index):
    return f"s{index}.default.svc.cluster.local"


def bootstrap(port):
    options = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}}
    server = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADS_PORT}}}}
    xds = {"name": "xds", "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": options,
           "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [server]}]}}
    ads = {"ads": {}, "resource_api_version": "V3"}
    return json.dumps({
        "node": {"id": "scale", "cluster": "scale"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port + 100}}},
        "static_resources": {"clusters": [xds]},
        "dynamic_resources": {"lds_config": ads, "cds_config": ads, "ads_config": {
            "api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]}}})


def ask(port, name, path):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"host": name})
    with urllib.request.urlopen(request, timeout=2) as reply:
        return reply.read().decode()


def until(port, name, path, wanted, process, log, limit=120):
    begun = time.monotonic()
    while time.monotonic() - begun < limit:
        if process.poll() is not None:
            sys.exit(f"the proxy stopped; its words:\n{open(log).read()[-3000:]}")
        try:
            if ask(port, name, path) == wanted:
                return time.monotonic() - begun
        except OSError:
            pass
        time.sleep(0.002)
    sys.exit(f"{name}{path} never answered {wanted!r}; see {log}")


def start(name, folder, services):
    port = PORTS[name]
    boot = write(f"{folder}/{name}-boot.json", bootstrap(port))
    program = {"envoy": [ENVOY, "-c", boot, "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"],
               "lateen": [f"{BIN}/lateen-proxy", "-c", boot, "--concurrency", "1"]}[name]
    log = f"{folder}/{name}.log"
    begun = time.monotonic()
    process = subprocess.Popen(program, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    until(port, host(services - 1), "/mark", "first", process, log)
    return process, log, time.monotonic() - begun


def cost(port, name, process, seconds):
    before = cpu(process.pid)
    out = subprocess.run(["wrk", "-t1", "-c16", f"-d{seconds}s", "-H", f"Host: {name}", f"http://127.0.0.1:{port}/mark"],
                         capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out and "Socket errors" not in out, out
    served = int(out.split(" requests in ")[0].split()[-1])
    return (cpu(process.pid) - before) / served * 1e6


def measure(name, services, seconds):
    with tempfile.TemporaryDirectory() as folder:
        origin = NGINX.format(dir=folder, name="origin", extra=f"server {{ listen 127.0.0.1:{ORIGIN}; location / {{ return 200 'x'; }} }}")
        nginx = subprocess.Popen(["nginx", "-c", write(f"{folder}/origin.conf", origin), "-p", folder], stderr=subprocess.DEVNULL)
        ads = subprocess.Popen([ADS, str(ADS_PORT), str(services), str(PORTS[name]), str(ORIGIN)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process = None
        try:
            assert ads.stdout.readline() == "ready\n"
            process, log, ready = start(name, folder, services)
            resident, port = rss(process.pid), PORTS[name]
            changes, spent = [], cpu(process.pid)
            for round in range(10 if services > 100 else 0):
                begun = time.monotonic()
                ads.stdin.write(f"mark-{round}\n")
                ads.stdin.flush()
                until(port, host(services - 1), "/mark", f"mark-{round}", process, log)
                changes.append(time.monotonic() - begun)
            spent = (cpu(process.pid) - spent) / max(len(changes), 1)
            return {"ready": ready, "rss": resident, "changes": changes, "spent": spent, "cost": cost(port, host(services - 1), process, seconds),
                    "after": rss(process.pid)}
        finally:
            for child in [process, ads, nginx]:
                if child:
                    child.terminate()
                    child.wait()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--services", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rows = []
    for name in ["envoy", "lateen"]:
        few, many = measure(name, 10, options.seconds), measure(name, options.services, options.seconds)
        change = statistics.median(many["changes"])
        rows.append(f"| {name} | {many['ready']:.2f} | {many['rss']:.0f} | {many['after']:.0f} | {few['rss']:.0f} | {change * 1000:.0f} | {many['spent'] * 1000:.0f} | {few['cost']:.1f} | {many['cost']:.1f} |")
        print(rows[-1], file=sys.stderr)
    table = "\n".join([
        f"### {options.services:,} services with {3 * options.services:,} routes on one proxy, 1 worker, configuration by ADS — {datetime.date.today()} (2 shared cores)",
        "| proxy | ready s | MiB when ready | MiB after 10 changes and load | MiB with 10 services | change live ms | CPU ms of it | CPU µs/request, 10 hosts | the same, all hosts |",
        "|---|---|---|---|---|---|---|---|---|", *rows])
    print(table)
    if options.record:
        with open(os.path.join(HERE, "RESULTS.md"), "a") as results:
            results.write("\n" + table + "\n")


if __name__ == "__main__":
    main()
