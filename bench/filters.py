#!/usr/bin/env python3
"""What HTTP filters cost a request: instructions and CPU of lateen-proxy with none, with those of every sidecar, with policies, tokens and
authorizers; and what other ways to endpoints cost.

    cargo build --profile dist -p lateen-agent && LATEEN_BIN=target/dist python3 bench/filters.py [--record]

Instructions are callgrind's over all of the proxy's threads for a fixed number of requests on kept connections (the binary as
it is shipped, so they hold on any machine and however busy it is); with --envoy, CPU by /proc of both proxies under wrk, in turns.
--only TEXT measures the cases whose name has it, and the first.
"""
import argparse, base64, datetime, json, os, re, signal, socket, statistics, subprocess, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from onehop import BIN, ENVOY, HERE, NGINX, cpu, load, wait_ready, write

ORIGIN, PORT, AUTHORIZER = 18070, 18071, 18073
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


def token():
    """A token by RS256, and the set with its key."""
    encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    with tempfile.NamedTemporaryFile() as key:
        openssl = lambda *args, **more: subprocess.run(["openssl", *args], check=True, capture_output=True, **more).stdout
        openssl("genrsa", "-out", key.name, "2048")
        modulus = bytes.fromhex(openssl("rsa", "-in", key.name, "-noout", "-modulus").decode().strip().split("=")[1])
        claims = {"iss": "bench", "sub": "alice", "aud": "shop", "exp": 4102444800, "groups": ["users", "admins"]}
        signed = ".".join(encode(json.dumps(part).encode()) for part in [{"alg": "RS256", "kid": "k"}, claims])
        signature = openssl("dgst", "-sha256", "-sign", key.name, input=signed.encode())
    keys = {"keys": [{"kty": "RSA", "alg": "RS256", "kid": "k", "e": "AQAB", "n": encode(modulus)}]}
    return f"{signed}.{encode(signature)}", json.dumps(keys)


def tokens(keys):
    provider = {"issuer": "bench", "payload_in_metadata": "payload", **keys}
    return [named("jwt_authn", f"{TYPE}.jwt_authn.v3.JwtAuthentication", providers={"p": provider},
                  rules=[{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}}}])]


AUTHORIZERS = [named("ext_authz", f"{TYPE}.ext_authz.v3.ExtAuthz", transport_api_version="V3", http_service={
    "server_uri": {"uri": "http://authorizer", "cluster": "authorizer", "timeout": "1s"}})]
SUBSETS = {"lb_subset_config": {"fallback_policy": "NO_FALLBACK", "subset_selectors": [{"keys": ["version"]}]}}
CHECKS = {"health_checks": [{"timeout": "1s", "interval": "1s", "unhealthy_threshold": 2, "healthy_threshold": 1,
                             "http_health_check": {"path": "/"}}]}
TOKEN, KEYS = token()
WRITTEN = {"local_jwks": {"inline_string": KEYS}}
# Fetched with the first request, which is none of those that count, and kept.
FETCHED = {"remote_jwks": {"http_uri": {"uri": "http://keys/keys", "cluster": "authorizer", "timeout": "1s"}, "cache_duration": "3600s"}}
EVERY = [named("fault", FAULT), named("cors", CORS)]
OTHERS = {"envoy.filters.http.fault": {"@type": FAULT, "abort": {"http_status": 500, "percentage": {"numerator": 100}}},
          "envoy.filters.http.cors": {"@type": f"{TYPE}.cors.v3.CorsPolicy", "allow_origin_string_match": [{"exact": "https://a"}]}}
# Filters, what another route says of them; then what the cluster has, what the route has, header lines of requests.
CASES = {
    "router alone": ([], {}),
    "fault and CORS, as every sidecar has them": (EVERY, {}),
    "the same, set up for another route": (EVERY, OTHERS),
    "RBAC, 1 rule": (EVERY + policies(0), {}),
    "RBAC, 10 rules": (EVERY + policies(9), {}),
    "RBAC, 1,000 rules": (EVERY + policies(999), {}),
    "a token by RS256": (tokens(WRITTEN), {}, {}, {}, f"authorization: Bearer {TOKEN}\r\n"),
    "a token by RS256, keys fetched by the proxy": (tokens(FETCHED), {}, {}, {}, f"authorization: Bearer {TOKEN}\r\n"),
    "an authorizer over HTTP, its call included": (AUTHORIZERS, {}),
    "a subset of endpoints": ([], {}, SUBSETS, {"metadata_match": {"filter_metadata": {"envoy.lb": {"version": "v1"}}}}),
    "active health checks each second": ([], {}, CHECKS),
}


def bootstrap(filters, of_other_route, of_cluster={}, of_route={}, _lines=""):
    route = {"match": {"prefix": "/"}, "route": {"cluster": "origin", **of_route}}
    router = named("router", f"{TYPE}.router.v3.Router")
    manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "main", "http_filters": [*filters, router],
               "route_config": {"name": "main", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                   {"match": {"prefix": "/other"}, "route": {"cluster": "origin"}, "typed_per_filter_config": of_other_route},
                   route]}]}}
    at = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return json.dumps({"admin": {"address": at(PORT + 1)}, "static_resources": {
        "listeners": [{"name": "main", "address": at(PORT), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
        "clusters": [{"name": "origin", "type": "STATIC", "connect_timeout": "1s", **of_cluster, "load_assignment": {
            "cluster_name": "origin", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(ORIGIN)},
                "metadata": {"filter_metadata": {"envoy.lb": {"version": "v1"}}}}]}]}},
            {"name": "authorizer", "type": "STATIC", "connect_timeout": "1s", "load_assignment": {
                "cluster_name": "authorizer", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(AUTHORIZER)}}]}]}}]}})


def ask(connections, requests, lines=""):
    """So many requests, in turns over kept connections."""
    request = f"GET / HTTP/1.1\r\nhost: a\r\nuser-agent: bench\r\naccept: */*\r\n{lines}\r\n".encode()
    for index in range(requests):
        connection = connections[index % len(connections)]
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 100:
            answer += connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200"), answer


def instructions(boot, folder, requests, lines):
    out, log = f"{folder}/callgrind.out", f"{folder}/lateen.log"
    process = subprocess.Popen(["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}",
                                f"{BIN}/lateen-proxy", "-c", boot, "--concurrency", "1"],
                               stdout=open(log, "w"), stderr=subprocess.STDOUT)
    try:
        wait_ready(PORT, process, "lateen", log)
        connections = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(4)]
        ask(connections, 200, lines)
        subprocess.run(["callgrind_control", "-i", "on", str(process.pid)], check=True, capture_output=True)
        ask(connections, requests, lines)
        subprocess.run(["callgrind_control", "-i", "off", str(process.pid)], check=True, capture_output=True)
    finally:
        process.terminate()
        process.wait(60)
    return int(re.search(r"Collected : (\d+)", open(log).read()).group(1)) / requests


def micros(name, boot, folder, seconds, lines):
    program = {"envoy": [ENVOY, "-c", boot, "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id"],
               "lateen": [f"{BIN}/lateen-proxy", "-c", boot, "--concurrency", "1"]}[name]
    log = f"{folder}/{name}.log"
    process = subprocess.Popen(program, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    try:
        wait_ready(PORT, process, name, log)
        if lines:  # which wrk does not send
            connections = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(4)]
            ask(connections, 500, lines)
            before, served = cpu(process.pid), 4000 * seconds
            ask(connections, served, lines)
            return (cpu(process.pid) - before) / served * 1e6
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
    parser.add_argument("--only", default="")
    parser.add_argument("--envoy", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rows, first = [], None
    cases = {case: setup for index, (case, setup) in enumerate(CASES.items()) if index == 0 or options.only in case}
    lines = {case: setup[4] if len(setup) > 4 else "" for case, setup in cases.items()}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        authorizer = f"server {{ listen 127.0.0.1:{AUTHORIZER}; location / {{ return 200; }} location /keys {{ return 200 '{KEYS}'; }} }}"
        extra = f"server {{ listen 127.0.0.1:{ORIGIN}; location / {{ default_type text/plain; return 200 '{'x' * 100}'; }} }}"
        origin = NGINX.format(dir=folder, name="origin", extra=extra + authorizer)
        nginx = subprocess.Popen(["nginx", "-c", write(f"{folder}/origin.conf", origin), "-p", folder], stderr=subprocess.DEVNULL)
        try:
            boots = {case: write(f"{folder}/{index}.json", bootstrap(*setup)) for index, (case, setup) in enumerate(cases.items())}
            times = {(case, name): [] for case in cases for name in ["envoy", "lateen"]}
            for _ in range(options.rounds if options.envoy else 0):
                for case, name in times:
                    times[case, name].append(micros(name, boots[case], folder, options.seconds, lines[case]))
            for case, boot in boots.items():
                count = instructions(boot, folder, options.requests, lines[case])
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
