#!/usr/bin/env python3
"""What HTTP filters cost a request: instructions and CPU of lateen-proxy with none, with those of every sidecar, and with policies.

    cargo build --profile dist -p lateen-agent && LATEEN_BIN=target/dist python3 bench/filters.py [--record]

Instructions are callgrind's over all of the proxy's threads for a fixed number of requests on kept connections (the binary as
it is shipped, so they hold on any machine and however busy it is); with --envoy, CPU by /proc of both proxies under wrk, in turns.
"""
import argparse, datetime, json, os, re, signal, socket, statistics, subprocess, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from onehop import BIN, ENVOY, HERE, NGINX, cpu, load, wait_ready, write

ORIGIN, PORT = 18070, 18071
TYPE = "type.googleapis.com/envoy.extensions.filters.http"
FAULT, CORS, RBAC = f"{TYPE}.fault.v3.HTTPFault", f"{TYPE}.cors.v3.Cors", f"{TYPE}.rbac.v3.RBAC"


def named(short, kind, **settings):
    return {"name": f"envoy.filters.http.{short}", "typed_config": {"@type": kind, **settings}}


def policy(index):
    """One of many that do not allow the request: by path, by header, by address."""
    permission, principal = {"any": True}, {"any": True}
    if index % 10 < 5:
        permission = {"and_rules": {"rules": [
            {"or_rules": {"rules": [{"url_path": {"path": {"exact": f"/api/{index}"}}}, {"url_path": {"path": {"prefix": f"/v{index}/"}}}]}},
            {"header": {"name": ":method", "string_match": {"exact": "GET"}}}]}}
    elif index % 10 < 8:
        principal = {"header": {"name": "x-user", "string_match": {"exact": f"user-{index}"}}}
    else:
        principal = {"direct_remote_ip": {"address_prefix": f"10.{index % 256}.{index // 256}.0", "prefix_len": 24}}
    return {"permissions": [permission], "principals": [principal]}


def policies(count):
    rules = {f"ns[a]-policy[p]-rule[{index}]": policy(index) for index in range(count)}
    rules[f"ns[a]-policy[p]-rule[{count}]"] = {
        "permissions": [{"url_path": {"path": {"exact": "/"}}}], "principals": [{"any": True}]}
    return [named("rbac", RBAC, rules={"action": "ALLOW", "policies": rules})]


EVERY = [named("fault", FAULT), named("cors", CORS)]
OTHERS = {"envoy.filters.http.fault": {"@type": FAULT, "abort": {"http_status": 500, "percentage": {"numerator": 100}}},
          "envoy.filters.http.cors": {"@type": f"{TYPE}.cors.v3.CorsPolicy", "allow_origin_string_match": [{"exact": "https://a"}]}}
CASES = {
    "router alone": ([], {}),
    "fault and CORS, as every sidecar has them": (EVERY, {}),
    "the same, set up for another route": (EVERY, OTHERS),
    "RBAC, 1 rule": (EVERY + policies(0), {}),
    "RBAC, 10 rules": (EVERY + policies(9), {}),
    "RBAC, 1,000 rules": (EVERY + policies(999), {}),
}


def bootstrap(filters, of_other_route):
    router = named("router", f"{TYPE}.router.v3.Router")
    manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "main", "http_filters": [*filters, router],
               "route_config": {"name": "main", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                   {"match": {"prefix": "/other"}, "route": {"cluster": "origin"}, "typed_per_filter_config": of_other_route},
                   {"match": {"prefix": "/"}, "route": {"cluster": "origin"}}]}]}}
    at = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return json.dumps({"admin": {"address": at(PORT + 1)}, "static_resources": {
        "listeners": [{"name": "main", "address": at(PORT), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [{"name": "origin", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {
            "cluster_name": "origin", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(ORIGIN)}}]}]}}]}})


def ask(connections, requests):
    """So many requests, in turns over kept connections."""
    for index in range(requests):
        connection = connections[index % len(connections)]
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nuser-agent: bench\r\naccept: */*\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 100:
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200"), answer


def instructions(boot, folder, requests):
    out, log = f"{folder}/callgrind.out", f"{folder}/lateen.log"
    process = subprocess.Popen(["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
                                f"{BIN}/lateen-proxy", "-c", boot, "--concurrency", "1"],
                               stdout=open(log, "w"), stderr=subprocess.STDOUT)
    try:
        wait_ready(PORT, process, "lateen", log)
        connections = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(4)]
        ask(connections, 200)
        subprocess.run(["callgrind_control", "-i", "on", str(process.pid)], check=True, capture_output=True)
        ask(connections, requests)
        subprocess.run(["callgrind_control", "-i", "off", str(process.pid)], check=True, capture_output=True)
    finally:
        process.terminate()
        process.wait(60)
    return int(re.search(r"Collected : (\d+)", open(log).read()).group(1)) / requests


def micros(name, boot, folder, seconds):
    program = {"envoy": [ENVOY, "-c", boot, "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"],
               "lateen": [f"{BIN}/lateen-proxy", "-c", boot, "--concurrency", "1"]}[name]
    log = f"{folder}/{name}.log"
    process = subprocess.Popen(program, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    try:
        wait_ready(PORT, process, name, log)
        load(PORT, 1, 64)
        before = cpu(process.pid)
        served = load(PORT, seconds, 64)["requests"]
        return (cpu(process.pid) - before) / served * 1e6
    finally:
        process.terminate()
        process.wait(60)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--envoy", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        extra = f"server {{ listen 127.0.0.1:{ORIGIN}; location / {{ default_type text/plain; return 200 '{'x' * 100}'; }} }}"
        origin = NGINX.format(dir=folder, name="origin", extra=extra)
        nginx = subprocess.Popen(["nginx", "-c", write(f"{folder}/origin.conf", origin), "-p", folder], stderr=subprocess.DEVNULL)
        try:
            boots = {case: write(f"{folder}/{index}.json", bootstrap(*setup)) for index, (case, setup) in enumerate(CASES.items())}
            times = {(case, name): [] for case in CASES for name in ["envoy", "lateen"]}
            for _ in range(options.rounds if options.envoy else 0):
                for case, name in times:
                    times[case, name].append(micros(name, boots[case], folder, options.seconds))
            for case, boot in boots.items():
                count = instructions(boot, folder, options.requests)
                first = first or count
                row = f"| {case} | {count:,.0f} | {(count / first - 1) * 100:+.1f} % |"
                if options.envoy:
                    ours, theirs = (statistics.median(times[case, name]) for name in ["lateen", "envoy"])
                    row += f" {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |"
                rows.append(row)
                print(row, file=sys.stderr)
        finally:
            nginx.send_signal(signal.SIGTERM)
            nginx.wait()
    head = "| filters | instructions/request | more than the first |" + (" CPU µs | Envoy's | ratio |" if options.envoy else "")
    table = "\n".join([f"### HTTP filters, one hop HTTP/1.1 — {datetime.date.today()}", head, "|---" * (head.count("|") - 1) + "|", *rows])
    print(table)
    if options.record:
        with open(os.path.join(HERE, "RESULTS.md"), "a") as results:
            results.write("\n" + table + "\n")


if __name__ == "__main__":
    main()
