//! From a [`CaptureConfig`] to an nft script.

use std::fmt::Display;

use ipnet::IpNet;

use crate::{CaptureConfig, DNS_PORT, DnsCapture, InboundPorts, IpRanges, PROXY_MARK};

/// The nft script for one pod: the table `inet lateen-capture`, replaced in one transaction.
///
/// The meaning is that of Istio's REDIRECT mode. Only the first packet of a connection is looked at, so connections that exist
/// already go on as they are. Captured inbound ports lead to the proxy only: when it isn't up, they are refused.
///
/// IPv6 is captured like IPv4. Proxies listen there with dual stack; without it captured IPv6 connections are refused, in both
/// directions, rather than pass by the mesh's policies; callers that know an IPv4 address as well use that one.
///
/// | chain | what happens there |
/// |---|---|
/// | `prerouting` | captured ports of connections from outside go to the inbound port |
/// | `output` | the proxy's own connections pass; the application's go to the outbound port, its DNS queries to the DNS server |
/// | `own-pod` | the proxy's outbound side calls its own pod: treated as if it came from outside |
pub fn rules(config: &CaptureConfig) -> String {
    let mut script = String::from(
        "table inet lateen-capture\ndelete table inet lateen-capture\ntable inet lateen-capture {\n",
    );
    chain(&mut script, "inbound", None, &inbound(config));
    chain(&mut script, "outbound", None, &outbound(config));
    chain(&mut script, "own-pod", None, &own_pod());
    chain(&mut script, "prerouting", Some("prerouting priority dstnat"), &prerouting(config));
    chain(&mut script, "output", Some("output priority -100"), &output(config));
    script.push_str("}\n");
    script
}

/// Which connections to this pod go to the proxy.
fn inbound(config: &CaptureConfig) -> Vec<String> {
    let redirect = format!("redirect to :{}", config.inbound_port);
    let mut rules = vec![format!("tcp dport {} return", config.tunnel_port)];
    match &config.inbound_ports {
        InboundPorts::All => {
            if !config.excluded_inbound_ports.is_empty() {
                rules.push(format!("tcp dport {} return", set(&config.excluded_inbound_ports)));
            }
            rules.push(format!("meta l4proto tcp {redirect}"));
        }
        InboundPorts::Only(ports) if ports.is_empty() => {}
        InboundPorts::Only(ports) => rules.push(format!("tcp dport {} {redirect}", set(ports))),
    }
    rules
}

/// Which of the application's connections go to the proxy.
fn outbound(config: &CaptureConfig) -> Vec<String> {
    let redirect = format!("redirect to :{}", config.outbound_port);
    let mut rules = vec!["ip daddr 127.0.0.0/8 return".to_owned(), "ip6 daddr ::1 return".to_owned()];
    rules.extend(to_ranges(&config.excluded_outbound_ranges, "return"));
    if !config.outbound_ports.is_empty() {
        rules.push(format!("tcp dport {} {redirect}", set(&config.outbound_ports)));
    }
    match &config.outbound_ranges {
        IpRanges::All => rules.push(format!("meta l4proto tcp {redirect}")),
        IpRanges::Only(ranges) => {
            let redirect = format!("meta l4proto tcp {redirect}");
            rules.extend(to_ranges(ranges, &redirect));
        }
    }
    rules
}

/// The proxy's own connections over loopback.
///
/// Its inbound side reaches the application from 127.0.0.6 (or ::6) and passes; anything else to the pod's own address comes
/// from its outbound side and goes in through the front door, so that the pod's policies hold for calls to itself too.
fn own_pod() -> Vec<String> {
    [
        "ip saddr 127.0.0.6 return",
        "ip6 saddr ::6 return",
        "ip daddr 127.0.0.0/8 return",
        "ip6 daddr ::1 return",
        "goto inbound",
    ]
    .map(str::to_owned)
    .into()
}

fn prerouting(config: &CaptureConfig) -> Vec<String> {
    let mut rules = Vec::new();
    if !config.excluded_interfaces.is_empty() {
        rules.push(format!("iifname {} return", names(&config.excluded_interfaces)));
    }
    if !config.vm_interfaces.is_empty() {
        rules.push(format!("iifname {} goto outbound", names(&config.vm_interfaces)));
    }
    rules.push("goto inbound".to_owned());
    rules
}

fn output(config: &CaptureConfig) -> Vec<String> {
    let mut rules = Vec::new();
    if !config.excluded_interfaces.is_empty() {
        rules.push(format!("oifname {} return", names(&config.excluded_interfaces)));
    }
    if !config.excluded_outbound_ports.is_empty() {
        rules.push(format!("tcp dport {} return", set(&config.excluded_outbound_ports)));
    }
    let mut proxy = vec![format!("meta mark {PROXY_MARK}")];
    if !config.proxy_uids.is_empty() {
        proxy.push(format!("meta skuid {}", set(&config.proxy_uids)));
    }
    if !config.proxy_gids.is_empty() {
        proxy.push(format!("meta skgid {}", set(&config.proxy_gids)));
    }
    for own in proxy {
        rules.push(format!("{own} oifname \"lo\" goto own-pod"));
        rules.push(format!("{own} return"));
    }
    rules.extend(dns(&config.dns));
    // The application calling its own pod by address stays inside, unless loopback itself is to be captured.
    let loopback_wanted = match &config.outbound_ranges {
        IpRanges::Only(ranges) => ranges.iter().any(|net| net.addr().is_loopback()),
        IpRanges::All => false,
    };
    if !loopback_wanted {
        rules.push("oifname \"lo\" return".to_owned());
    }
    rules.push("goto outbound".to_owned());
    rules
}

/// Which of the application's DNS queries go to the proxy's DNS server. Those of the proxy itself have passed already: it must
/// not be told its own answers.
fn dns(capture: &DnsCapture) -> Vec<String> {
    let redirect = format!("meta l4proto {{ tcp, udp }} th dport 53 redirect to :{DNS_PORT}");
    match capture {
        DnsCapture::Off => Vec::new(),
        DnsCapture::All => vec![redirect],
        DnsCapture::Servers(servers) => {
            let servers: Vec<IpNet> = servers.iter().copied().map(IpNet::from).collect();
            to_ranges(&servers, &redirect)
        }
    }
}

fn chain(script: &mut String, name: &str, hook: Option<&str>, rules: &[String]) {
    script.push_str(&format!("  chain {name} {{\n"));
    if let Some(hook) = hook {
        script.push_str(&format!("    type nat hook {hook}; policy accept;\n"));
    }
    for rule in rules {
        script.push_str(&format!("    {rule}\n"));
    }
    script.push_str("  }\n");
}

/// One rule per address family in use.
fn to_ranges(ranges: &[IpNet], verdict: &str) -> Vec<String> {
    let family = |name: &str, wanted: fn(&&IpNet) -> bool| {
        let nets: Vec<&IpNet> = ranges.iter().filter(wanted).collect();
        (!nets.is_empty()).then(|| format!("{name} daddr {} {verdict}", set(nets)))
    };
    let v4 = family("ip", |net| matches!(net, IpNet::V4(_)));
    let v6 = family("ip6", |net| matches!(net, IpNet::V6(_)));
    v4.into_iter().chain(v6).collect()
}

fn set<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    format!("{{ {} }}", items.join(", "))
}

fn names(items: impl IntoIterator<Item = impl Display>) -> String {
    set(items.into_iter().map(|item| format!("\"{item}\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(line: &str) -> String {
        rules(&CaptureConfig::from_args(line.split(' ').filter(|word| !word.is_empty())).unwrap())
    }

    #[test]
    fn everything_but_the_proxys_own() {
        let expected = r#"table inet lateen-capture
delete table inet lateen-capture
table inet lateen-capture {
  chain inbound {
    tcp dport 15008 return
    tcp dport { 15020, 15021, 15090 } return
    meta l4proto tcp redirect to :15006
  }
  chain outbound {
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    meta l4proto tcp redirect to :15001
  }
  chain own-pod {
    ip saddr 127.0.0.6 return
    ip6 saddr ::6 return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    goto inbound
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    goto inbound
  }
  chain output {
    type nat hook output priority -100; policy accept;
    meta mark 1337 oifname "lo" goto own-pod
    meta mark 1337 return
    meta skuid { 1337 } oifname "lo" goto own-pod
    meta skuid { 1337 } return
    oifname "lo" return
    goto outbound
  }
}
"#;
        assert_eq!(script("-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -b * -d 15090,15021,15020"), expected);
    }

    #[test]
    fn selected_ports_and_ranges() {
        let expected = r#"table inet lateen-capture
delete table inet lateen-capture
table inet lateen-capture {
  chain inbound {
    tcp dport 15008 return
    tcp dport { 80, 8080 } redirect to :15006
  }
  chain outbound {
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    ip daddr { 10.96.0.1/32 } return
    tcp dport { 6379 } redirect to :15001
    ip daddr { 10.0.0.0/8 } meta l4proto tcp redirect to :15001
    ip6 daddr { fd00::/64 } meta l4proto tcp redirect to :15001
  }
  chain own-pod {
    ip saddr 127.0.0.6 return
    ip6 saddr ::6 return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    goto inbound
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    iifname { "eth1" } return
    iifname { "vm0" } goto outbound
    goto inbound
  }
  chain output {
    type nat hook output priority -100; policy accept;
    oifname { "eth1" } return
    tcp dport { 3306 } return
    meta mark 1337 oifname "lo" goto own-pod
    meta mark 1337 return
    oifname "lo" return
    goto outbound
  }
}
"#;
        let line = "-b 80,8080 -i 10.0.0.0/8,fd00::/64 -x 10.96.0.1 -q 6379 -o 3306 -c eth1 -k vm0";
        assert_eq!(script(line), expected);
    }

    #[test]
    fn dns_of_the_application_after_the_proxys_own() {
        let mut config = CaptureConfig::from_args("-u 1337 -i * --redirect-dns".split(' ')).unwrap();
        let conf = crate::ResolvConf::parse("nameserver 10.96.0.10\nnameserver fd00::a\n");
        config.with_surroundings(|_| None, &conf);
        let rules = "    meta skuid { 1337 } return
    ip daddr { 10.96.0.10/32 } meta l4proto { tcp, udp } th dport 53 redirect to :15053
    ip6 daddr { fd00::a/128 } meta l4proto { tcp, udp } th dport 53 redirect to :15053
    oifname \"lo\" return
";
        assert!(super::rules(&config).contains(rules), "{}", super::rules(&config));
        let all = "    meta l4proto { tcp, udp } th dport 53 redirect to :15053\n    oifname";
        assert!(script("-i * --capture-all-dns").contains(all));
        assert!(!script("-i *").contains("15053"));
    }

    #[test]
    fn nothing_asked_for_nothing_captured() {
        let script = script("");
        assert!(!script.contains("redirect"), "{script}");
    }

    #[test]
    fn loopback_can_be_asked_for() {
        assert!(!script("-i 127.0.0.0/8").contains("oifname \"lo\" return"));
    }
}
