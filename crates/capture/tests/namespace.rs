//! Capture in a real network namespace: two namespaces joined by a veth pair, one the "pod", one the "world". Needs root.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::Command,
    time::Duration,
};

use lateen_capture::{CaptureConfig, PROXY_MARK, apply, rules};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

/// Two namespaces, removed at the end.
struct Pair {
    pod: String,
    world: String,
}

impl Pair {
    fn new(name: &str) -> Self {
        let id = std::process::id();
        let pair = Self { pod: format!("lt-cap-p-{name}-{id}"), world: format!("lt-cap-w-{name}-{id}") };
        let (pod, world) = (&pair.pod, &pair.world);
        for line in [
            format!("netns add {pod}"),
            format!("netns add {world}"),
            format!("-n {pod} link add eth0 type veth peer name eth0 netns {world}"),
            format!("-n {pod} addr add 10.210.0.2/24 dev eth0"),
            format!("-n {world} addr add 10.210.0.1/24 dev eth0"),
            format!("-n {pod} addr add fd00:210::2/64 dev eth0 nodad"),
            format!("-n {world} addr add fd00:210::1/64 dev eth0 nodad"),
            format!("-n {pod} link set lo up"),
            format!("-n {pod} link set eth0 up"),
            format!("-n {world} link set lo up"),
            format!("-n {world} link set eth0 up"),
        ] {
            let status = Command::new("ip").args(line.split(' ')).status().expect("the program ip");
            assert!(status.success(), "ip {line} (are you root?)");
        }
        pair
    }

    fn capture(&self, line: &str) {
        let config = CaptureConfig::from_args(line.split(' ')).unwrap();
        inside(&self.pod, move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // Twice: applying again replaces.
            runtime.block_on(apply(&config)).unwrap();
            runtime.block_on(apply(&config)).unwrap();
        });
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in [&self.pod, &self.world] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Runs `work` on a thread inside the namespace; sockets made there stay there.
fn inside<T: Send + 'static>(netns: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(format!("/run/netns/{netns}")).unwrap();
    std::thread::spawn(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .join()
    .unwrap()
}

/// A server that answers every connection with its name.
fn serve(netns: &str, address: &str, name: &'static str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = inside(netns, move || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
        }
    });
}

/// Who answers at `address`, seen from inside the namespace.
fn ask(netns: &str, mark: Option<u32>, source: Option<&str>, address: &str) -> Result<String, ErrorKind> {
    let address: SocketAddr = address.parse().unwrap();
    let source: Option<IpAddr> = source.map(|text| text.parse().unwrap());
    inside(netns, move || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        if let Some(mark) = mark {
            socket.set_mark(mark).unwrap();
        }
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
        }
        socket.connect_timeout(&address.into(), Duration::from_secs(5)).map_err(|error| error.kind())?;
        let mut answer = String::new();
        TcpStream::from(socket).read_to_string(&mut answer).map_err(|error| error.kind())?;
        Ok(answer)
    })
}

const ALL: &str = "-p 15001 -z 15006 -m REDIRECT -i * -b * -d 15090,15021,15020";

#[test]
fn outbound_goes_to_the_proxy_except_its_own() {
    let pair = Pair::new("out");
    serve(&pair.world, "10.210.0.1:80", "world");
    serve(&pair.world, "[fd00:210::1]:80", "world6");
    serve(&pair.pod, "0.0.0.0:15001", "proxy");
    serve(&pair.pod, "[::1]:15001", "proxy6");
    serve(&pair.pod, "0.0.0.0:9000", "app");
    assert_eq!(ask(&pair.pod, None, None, "10.210.0.1:80").as_deref(), Ok("world"), "before capture");
    pair.capture(ALL);
    let answers = [
        (None, "10.210.0.1:80", "proxy"),
        (Some(PROXY_MARK), "10.210.0.1:80", "world"),
        (Some(7), "10.210.0.1:80", "proxy"),
        (None, "[fd00:210::1]:80", "proxy6"),
        (Some(PROXY_MARK), "[fd00:210::1]:80", "world6"),
        (None, "127.0.0.1:9000", "app"),
        (None, "127.8.8.8:9000", "app"),
        (None, "10.210.0.2:9000", "app"),
    ];
    for (mark, address, expected) in answers {
        assert_eq!(ask(&pair.pod, mark, None, address).as_deref(), Ok(expected), "{mark:?} {address}");
    }
}

#[test]
fn outbound_exclusions_and_inclusions() {
    let pair = Pair::new("sel");
    for port in [80, 81, 3306] {
        serve(&pair.world, &format!("10.210.0.1:{port}"), "world");
    }
    serve(&pair.pod, "0.0.0.0:15001", "proxy");
    let cases = [
        ("-i * -o 3306", "10.210.0.1:3306", "world"),
        ("-i * -o 3306", "10.210.0.1:80", "proxy"),
        ("-i * -x 10.210.0.0/24", "10.210.0.1:80", "world"),
        ("-i 10.210.0.1/32", "10.210.0.1:80", "proxy"),
        ("-i 10.96.0.0/16", "10.210.0.1:80", "world"),
        ("-i 10.96.0.0/16 -q 81", "10.210.0.1:81", "proxy"),
        ("-i * -c eth0", "10.210.0.1:80", "world"),
    ];
    for (line, address, expected) in cases {
        pair.capture(line);
        assert_eq!(ask(&pair.pod, None, None, address).as_deref(), Ok(expected), "{line}: {address}");
    }
}

#[test]
fn inbound_fails_closed_and_excludes() {
    let pair = Pair::new("in");
    serve(&pair.pod, "0.0.0.0:8080", "app");
    serve(&pair.pod, "[::]:8081", "app");
    serve(&pair.pod, "0.0.0.0:15021", "health");
    pair.capture(ALL);
    assert_eq!(ask(&pair.world, None, None, "10.210.0.2:8080"), Err(ErrorKind::ConnectionRefused));
    assert_eq!(ask(&pair.world, None, None, "[fd00:210::2]:8081"), Err(ErrorKind::ConnectionRefused));
    assert_eq!(ask(&pair.world, None, None, "10.210.0.2:15021").as_deref(), Ok("health"));

    serve(&pair.pod, "[::]:15006", "proxy");
    assert_eq!(ask(&pair.world, None, None, "10.210.0.2:8080").as_deref(), Ok("proxy"));
    assert_eq!(ask(&pair.world, None, None, "[fd00:210::2]:8081").as_deref(), Ok("proxy"));
    // The caller's mark stays in its own namespace: nobody outside can claim to be the proxy.
    assert_eq!(ask(&pair.world, Some(PROXY_MARK), None, "10.210.0.2:8080").as_deref(), Ok("proxy"));

    pair.capture("-i * -b 8081");
    assert_eq!(ask(&pair.world, None, None, "10.210.0.2:8080").as_deref(), Ok("app"));
    assert_eq!(ask(&pair.world, None, None, "10.210.0.2:8081").as_deref(), Ok("proxy"));
}

#[test]
fn the_proxy_reaches_its_application_and_calls_to_itself_go_through_the_front_door() {
    let pair = Pair::new("own");
    serve(&pair.pod, "0.0.0.0:8080", "app");
    serve(&pair.pod, "0.0.0.0:15006", "inbound");
    pair.capture(ALL);
    let mark = Some(PROXY_MARK);
    assert_eq!(ask(&pair.pod, mark, Some("127.0.0.6"), "10.210.0.2:8080").as_deref(), Ok("app"));
    assert_eq!(ask(&pair.pod, mark, None, "127.0.0.1:8080").as_deref(), Ok("app"));
    assert_eq!(ask(&pair.pod, mark, None, "10.210.0.2:8080").as_deref(), Ok("inbound"));
}

#[test]
fn every_form_of_rule_is_accepted_by_nft() {
    let pair = Pair::new("syn");
    let line = "-u 1337,0 -g 1337 -i 10.0.0.0/8,fd00::/64,127.0.0.0/8 -x 10.96.0.1,fd00::1 -q 1,2 -o 3,4 -b 5,6 -c a0,b-0.1 -k vm0 -e 7";
    pair.capture(line);
    let script = rules(&CaptureConfig::from_args(line.split(' ')).unwrap());
    assert_eq!(script.matches("chain ").count(), 5);
}
