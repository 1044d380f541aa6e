#!/usr/bin/env python3
"""TLS beside Envoy: what a handshake costs, full and resumed, and a request through a pair of proxies with mutual TLS between them.

    cargo build --profile dist -p lateen-agent && LATEEN_BIN=target/dist python3 bench/tls.py [--record]

Both proxies read the same bootstraps (P-256 certificates, TLS 1.3), one worker each, and take turns. A connection's cost is the proxy's
CPU by connections that make one request, which is answered in place, less that of such a request on a kept connection. A handshake's is
that of a connection with TLS less that of one without: accepting, closing and what belongs to a connection's HTTP are not in it. The pair: wrk - client proxy - mutual TLS - server proxy with RBAC by SPIFFE id and an access log -
nginx; CPU of both proxies by requests.
"""
import argparse, datetime, json, os, shutil, signal, socket, ssl, statistics, subprocess, sys, tempfile
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from onehop import BIN, ENVOY, HERE, NGINX, cpu, load, wait_ready, write

ORIGIN, PLAIN, MUTUAL, SERVER, BARE = 18060, 18061, 18062, 18063, 18064
REQUEST = b"GET /here HTTP/1.1\r\nhost: a\r\n\r\n"
TYPE = "type.googleapis.com/envoy.extensions"
TLS = f"{TYPE}.transport_sockets.tls.v3"


def certificates(folder):
    run = lambda *arguments: subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/O=bench", "-days", "2")
    for name in ["server", "client"]:
        write(f"{folder}/{name}.ext", f"subjectAltName=URI:spiffe://cluster.local/ns/default/sa/{name},DNS:{name}\n")
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1",
            "-extfile", f"{name}.ext", "-out", f"{name}.pem")


def common(folder, name, peer=None):
    text = lambda file: {"inline_string": open(f"{folder}/{file}").read()}
    out = {"tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
           "tls_certificates": [{"certificate_chain": text(f"{name}.pem"), "private_key": text(f"{name}.key")}]}
    if peer:
        exact = {"exact": f"spiffe://cluster.local/ns/default/sa/{peer}"}
        out["validation_context"] = {"trusted_ca": text("ca.pem"),
                                     "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": exact}]}
    return out


def at(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def listener(port, routes, filters=(), log=None, tls=None):
    router = {"name": "router", "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"}}
    manager = {"@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": str(port),
               "http_filters": [*filters, router],
               "route_config": {"name": "all", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}}
    if log:
        manager["access_log"] = [{"name": "log", "typed_config": {"@type": f"{TYPE}.access_loggers.file.v3.FileAccessLog", "path": log}}]
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls:
        chain["transport_socket"] = {"name": "tls", "typed_config": {"@type": f"{TLS}.DownstreamTlsContext", **tls}}
    return {"name": str(port), "address": at(port), "filter_chains": [chain]}


def cluster(name, port, tls=None):
    out = {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(port)}}]}]}}
    if tls:
        out["transport_socket"] = {"name": "tls", "typed_config": {"@type": f"{TLS}.UpstreamTlsContext", "common_tls_context": tls}}
    return out


def bootstraps(folder):
    """The client's side and the server's."""
    to = lambda cluster: {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    here = {"match": {"path": "/here"}, "direct_response": {"status": 200, "body": {"inline_string": "x"}}}
    policy = {"permissions": [{"any": True}], "principals": [
        {"authenticated": {"principal_name": {"exact": "spiffe://cluster.local/ns/default/sa/client"}}}]}
    rbac = {"name": "rbac", "typed_config": {"@type": f"{TYPE}.filters.http.rbac.v3.RBAC",
                                             "rules": {"action": "ALLOW", "policies": {"client": policy}}}}
    client = {"listeners": [listener(PLAIN, [to("server")])], "clusters": [cluster("server", MUTUAL, common(folder, "client", "server"))]}
    server = {"clusters": [cluster("origin", ORIGIN)], "listeners": [
        listener(MUTUAL, [to("origin")], [rbac], f"{folder}/access.log",
                 {"require_client_certificate": True, "common_tls_context": common(folder, "server", "client")}),
        listener(BARE, [here]),
        listener(SERVER, [here, to("origin")], tls={"common_tls_context": common(folder, "server")})]}
    make = lambda name, resources, port: write(f"{folder}/{name}.json", json.dumps(
        {"admin": {"address": at(port)}, "static_resources": resources}))
    return make("client", client, 18068), make("server", server, 18069)


def start(name, boot, log):
    program = [ENVOY, "-c", boot, "--log-level", "error", "--use-dynamic-base-id"] if name == "envoy" else [f"{BIN}/lateen-proxy", "-c", boot]
    return subprocess.Popen([*program, "--concurrency", "1"], stdout=open(log, "w"), stderr=subprocess.STDOUT)


def answered(connection):
    connection.sendall(REQUEST)
    answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200"), answer


def bare(process, count):
    """CPU microseconds of the proxy for each connection without TLS, its request included."""
    before = cpu(process.pid)
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", BARE)) as connection:
            answered(connection)
    return (cpu(process.pid) - before) / count * 1e6


def handshakes(process, context, count, resumed):
    """CPU microseconds of the proxy for each connection with TLS, its request included."""
    session, before = None, cpu(process.pid)
    for index in range(count):
        with socket.create_connection(("127.0.0.1", SERVER)) as plain:
            with context.wrap_socket(plain, server_hostname="server", session=session) as connection:
                answered(connection)
                assert not resumed or index == 0 or connection.session_reused
                session = connection.session if resumed else None
    return (cpu(process.pid) - before) / count * 1e6


def kept(process, context, count):
    with context.wrap_socket(socket.create_connection(("127.0.0.1", SERVER)), server_hostname="server") as connection:
        before = cpu(process.pid)
        for _ in range(count):
            answered(connection)
        return (cpu(process.pid) - before) / count * 1e6


def measure(name, folder, options):
    boots = bootstraps(folder)
    context = ssl.create_default_context(cafile=f"{folder}/ca.pem")
    processes = [start(name, boot, f"{folder}/{name}-{index}.log") for index, boot in enumerate(boots)]
    try:
        wait_ready(PLAIN, processes[0], name, f"{folder}/{name}-0.log")
        handshakes(processes[1], context, 50, False)
        request = kept(processes[1], context, options.handshakes)
        full, resumed = (handshakes(processes[1], context, options.handshakes, again) for again in [False, True])
        plain = bare(processes[1], options.handshakes)
        load(PLAIN, 1, 64)
        before = sum(cpu(process.pid) for process in processes)
        served = load(PLAIN, options.seconds, 64)
        assert served["failed"] == 0, served
        pair = (sum(cpu(process.pid) for process in processes) - before) / served["requests"] * 1e6
        return {"full": full - request, "resumed": resumed - request, "pair": pair,
                "handshake": full - plain, "resumption": resumed - plain}
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--handshakes", type=int, default=1500)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    for program in ("nginx", "wrk", "openssl", ENVOY, f"{BIN}/lateen-proxy"):
        if not shutil.which(program):
            sys.exit(f"{program} is missing: run scripts/install-tools.sh bench, and make build")
    figures = {"envoy": [], "lateen": []}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        certificates(folder)
        extra = f"server {{ listen 127.0.0.1:{ORIGIN} backlog=1024; location / {{ default_type text/plain; return 200 '{'x' * 100}'; }} }}"
        origin = NGINX.format(dir=folder, name="origin", extra=extra)
        nginx = subprocess.Popen(["nginx", "-c", write(f"{folder}/origin.conf", origin), "-p", folder], stderr=subprocess.DEVNULL)
        try:
            for _ in range(options.rounds):
                for name, rows in figures.items():
                    rows.append(measure(name, folder, options))
                    print(name, rows[-1], file=sys.stderr)
        finally:
            nginx.send_signal(signal.SIGTERM)
            nginx.wait()
    median = lambda name, key: statistics.median(row[key] for row in figures[name])
    rows = []
    for key, what in [("handshake", "full handshake"), ("resumption", "resumed handshake"), ("full", "connection with a full handshake"),
                      ("resumed", "connection with a resumed handshake"), ("pair", "request through a pair with mutual TLS, RBAC, access log")]:
        ours, theirs = median("lateen", key), median("envoy", key)
        a_second = [f"{1e6 / value:,.0f}" if key != "pair" else "" for value in (ours, theirs)]
        rows.append(f"| {what} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} | {a_second[0]} | {a_second[1]} |")
    table = "\n".join([f"### TLS — {datetime.date.today()} ({options.rounds} rounds, P-256, TLS 1.3, {os.cpu_count()} shared cores)",
                       "| what | CPU µs | Envoy's | ratio | a second on one core | Envoy's |", "|---|---|---|---|---|---|", *rows])
    print(table)
    if options.record:
        with open(os.path.join(HERE, "RESULTS.md"), "a") as results:
            results.write("\n" + table + "\n")


if __name__ == "__main__":
    main()
