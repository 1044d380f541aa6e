//! Requests in pieces, what services answer, connections, tunnels.

use super::*;

/// Bodies that come in parts.
pub(super) fn parts() -> Vec<Case> {
    vec![
        steps(
            "expect continue",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"),
                Step::Answers(vec!["POST"]),
                send("abc"),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "expect continue with the body",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"),
                Step::Answers(vec!["POST", "POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "expect continue in capitals",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nExpect: 100-Continue\r\ncontent-length: 3\r\n\r\n"),
                Step::Answers(vec!["POST"]),
                send("abc"),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "big body",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n"),
                send(vec![b'x'; 3_000_000]),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "body in pieces",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\ncontent-le"),
                send("ngth: 6\r\n"),
                send("\r\nab"),
                send("cd"),
                send("ef"),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "smuggled request",
            vec![
                send(
                    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n",
                ),
                Step::Answers(vec!["POST"]),
                Step::Ended,
            ],
        ),
    ]
}

pub(super) fn answers() -> Vec<Case> {
    let mut all: Vec<Case> = [
        "empty",
        "close",
        "close-silently",
        "until-close",
        "http10",
        "http10-keep-alive",
        "garbage",
        "version-2",
        "short",
        "short-head",
        "bad-chunk",
        "cut-chunks",
        "chunks",
        "trailers",
        "length-and-chunked",
        "two-lengths",
        "same-lengths",
        "bad-length",
        "gzip-coding",
        "204",
        "204-length",
        "304",
        "304-length",
        "205",
        "100-200",
        "102-200",
        "103-200",
        "101",
        "500",
        "600",
        "999",
        "099",
        "no-reason",
        "other-reason",
        "bare-lf",
        "folded",
        "space-before-colon",
        "headers",
        "upgrade-header",
        "trailing",
        "big",
        "big-head",
        "head-50k",
        "101-headers",
        "90-headers",
        "early-close",
        "early-reset",
    ]
    .into_iter()
    .map(|name| act(name, name))
    .collect();
    all.extend([
        one("head with length", "HEAD / HTTP/1.1\r\nhost: a\r\nact: head-length\r\n\r\n"),
        one("head of chunks", "HEAD / HTTP/1.1\r\nhost: a\r\nact: head-chunked\r\n\r\n"),
        one("head of 204", "HEAD / HTTP/1.1\r\nhost: a\r\nact: 204\r\n\r\n"),
        one(
            "post and early close",
            "POST / HTTP/1.1\r\nhost: a\r\nact: early-close\r\ncontent-length: 3\r\n\r\nabc",
        ),
        steps(
            "early answer to a body that never ends",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nact: early-413\r\ncontent-length: 1000000\r\n\r\nabc"),
                Step::Answers(vec!["POST"]),
                Step::Ended,
            ],
        ),
        one("retried", "GET /retry HTTP/1.1\r\nhost: a\r\nact: 500\r\n\r\n"),
        one("retried reset", "GET /retry HTTP/1.1\r\nhost: a\r\nact: early-close\r\n\r\n"),
        one("timeout", "GET /timeout HTTP/1.1\r\nhost: a\r\nact: silence\r\n\r\n"),
        one(
            "post timeout",
            "POST /timeout HTTP/1.1\r\nhost: a\r\nact: silence\r\ncontent-length: 1\r\n\r\na",
        ),
        one("chunks to http 1.0", "GET / HTTP/1.0\r\nhost: a\r\nact: chunks\r\n\r\n").on("http10"),
        one("until close to http 1.0", "GET / HTTP/1.0\r\nhost: a\r\nact: until-close\r\n\r\n").on("http10"),
    ]);
    all
}

pub(super) fn connections() -> Vec<Case> {
    let two = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
    vec![
        steps("pipelined", vec![send(two), Step::Answers(vec!["GET", "GET"]), Step::Probe]),
        steps("pipelined after a body", vec![
            send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc{two}")),
            Step::Answers(vec!["POST", "GET", "GET"]), Step::Probe,
        ]),
        steps("pipelined after close", vec![
            send(format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n{two}")),
            Step::Answers(vec!["GET"]), Step::Ended,
        ]),
        steps("pipelined garbage", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\n\r\nwhat is this?\r\n\r\n"), Step::Answers(vec!["GET", "GET"]), Step::Ended,
        ]),
        steps("half close", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::HalfClose, Step::Ended,
        ]),
        steps("half close in the head", vec![
            send("GET / HTTP/1.1\r\nho"), Step::HalfClose, Step::Answers(vec!["GET"]), Step::Ended,
        ]),
        steps("half close in the body", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Step::HalfClose, Step::Answers(vec!["POST"]), Step::Ended,
        ]),
        steps("silence", vec![Step::HalfClose, Step::Ended]),
        steps("idle", vec![Step::Ended]).on("idle"),
        steps("idle after a request", vec![send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::Ended]).on("idle"),
        steps("idle in the head", vec![send("GET / HTTP/1.1\r\nho"), Step::Answers(vec!["GET"]), Step::Ended]).on("idle"),
        steps("idle in the body", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Step::Answers(vec!["POST"]), Step::Ended,
        ]).on("idle"),
        steps("idle service", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\nact: silence\r\n\r\n"), Step::Answers(vec!["GET"]), Step::Ended,
        ]).on("idle"),
        steps("slow head", vec![send("GET / HTTP/1.1\r\nho"), Step::Answers(vec!["GET"]), Step::Ended]).on("slow-head"),
        steps(
            "idle where heads must come soon",
            vec![
                send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
                Step::Answers(vec!["GET"]),
                Step::Pause(std::time::Duration::from_millis(1500)),
                Step::Probe,
            ],
        )
        .on("slow-head"),
        steps("slow request", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Step::Answers(vec!["POST"]), Step::Ended,
        ]).on("slow-request"),
        steps("slow request, of which much is told", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Step::Answers(vec!["POST"]), Step::Ended,
        ]).on("slow-told"),
        steps("slow chunks, of which much is told", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"), Step::Answers(vec!["POST"]), Step::Ended,
        ]).on("slow-told"),
        steps("slow request of gRPC", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 10\r\n\r\nabc"), Step::Answers(vec!["POST"]), Step::Ended,
        ]).on("slow-told"),
        steps("a request that comes in time, of which much is told", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"), Step::Answers(vec!["POST"]),
        ]).on("slow-told"),
        steps("most requests", vec![
            send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]),
            send("GET /2 HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::Ended,
        ]).on("one-request"),
        steps("tcp", vec![send("GET /tcp HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::HalfClose, Step::Ended]).on("tcp"),
        steps("tcp to nobody", vec![Step::Ended]).on("tcp-dead"),
        steps("websocket", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\nact: websocket\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"),
            Step::Answers(vec!["GET"]), Step::Raw(5), send("ping"), Step::Raw(4), Step::HalfClose, Step::Ended,
        ]).on("upgrades"),
        steps("websocket with data at once", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\nact: websocket\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\r\nping"),
            Step::Answers(vec!["GET"]), Step::Raw(9), Step::HalfClose, Step::Ended,
        ]).on("upgrades"),
        get("websocket refused by the service", "connection: upgrade\r\nupgrade: websocket\r\n").on("upgrades"),
        get("another upgrade", "connection: upgrade\r\nupgrade: spdy\r\n").on("upgrades"),
    ]
}

/// CONNECT of HTTP/1.1 clients; what is sent to the service in it, and how much comes back.
pub(super) fn tunnels() -> Vec<Case> {
    let connect = |name, host: &str, sent: &[&str], back: usize| {
        let mut all = vec![
            send(format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n")),
            Step::Answers(vec!["CONNECT"]),
        ];
        all.extend(sent.iter().map(send));
        all.extend([Step::Raw(back), Step::HalfClose, Step::Ended]);
        steps(name, all).on("tunnels")
    };
    let refused = |name, host: &str, more: &str| {
        let head = format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
        steps(name, vec![send(head), Step::Answers(vec!["GET"]), Step::Ended]).on("tunnels")
    };
    let websocket = |name, path: &str, back: usize| {
        steps(name, vec![
            send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nact: websocket\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")),
            Step::Answers(vec!["GET"]), send("ping"), Step::Raw(back), Step::HalfClose, Step::Ended,
        ])
        .on("tunnels")
    };
    let inner = "GET /inner HTTP/1.1\r\nhost: inner\r\nact: empty\r\n\r\n";
    vec![
        connect("connect that ends here", "ends:443", &[inner], 38),
        steps(
            "connect with data at once",
            vec![
                send(format!("CONNECT ends:443 HTTP/1.1\r\nhost: ends:443\r\n\r\n{inner}")),
                Step::Answers(vec!["CONNECT"]),
                Step::Raw(38),
                Step::HalfClose,
                Step::Ended,
            ],
        )
        .on("tunnels"),
        connect("connect that goes on", "on:443", &["ping"], 30),
        connect("connect that goes on over http2", "on2:443", &["ping"], 16),
        refused("connect that the service refuses", "on:443", "act: 500\r\n"),
        refused("connect to nobody", "dead:443", ""),
        refused("connect to an empty cluster", "empty:443", ""),
        refused("connect to a missing cluster", "missing:443", ""),
        refused("connect where it is off", "off:443", ""),
        refused("connect without a route", "other:443", ""),
        refused("connect without a port", "ends", ""),
        websocket("websocket to http2", "/http2/x", 34),
        websocket("websocket where it is off", "/off", 9),
    ]
}

pub(super) fn options() -> Vec<Case> {
    let ten = |name, more: &str| one(name, format!("GET / HTTP/1.0\r\n{more}\r\n")).on("http10");
    vec![
        ten("1.0", ""),
        ten("1.0 with host", "host: a\r\n"),
        ten("1.0 keep-alive", "host: a\r\nconnection: keep-alive\r\n"),
        one("custom method allowed", "BREW / HTTP/1.1\r\nhost: a\r\n\r\n").on("methods"),
        get("edge", "").on("edge"),
        get("edge forwarded", "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nx-request-id: mine\r\nx-envoy-internal: true\r\nx-envoy-retry-on: 5xx\r\n").on("edge"),
        get("hops", "x-forwarded-for: 1.2.3.4, 5.6.7.8\r\nx-forwarded-proto: https\r\n").on("hops"),
        get("underscore refused", "x_a: b\r\n").on("no-underscores"),
        get("underscore dropped", "x_a: b\r\n").on("drop-underscores"),
        one("port stripped", "GET / HTTP/1.1\r\nhost: a:8080\r\n\r\n").on("strip-port"),
        get("small heads", &format!("x: {}\r\n", "x".repeat(9000))).on("small-heads"),
        get("few headers", &many(10)).on("few-headers"),
        get("1.1 to http2", "").on("http2-only"),
    ]
}
