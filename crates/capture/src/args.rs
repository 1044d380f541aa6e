//! The flags of Istio's `istio-iptables`, as the init container gets them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ResolvConf;

/// A flag that can't be understood or honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("istio-iptables: {flag}: {problem}")]
pub struct ArgumentError {
    /// The flag as given.
    pub flag: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

/// Which inbound ports go through the proxy (`-b`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InboundPorts {
    /// `*`: all but the excluded ones.
    All,
    /// Only these; none when empty.
    Only(BTreeSet<u16>),
}

/// Which destination addresses go through the proxy (`-i`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpRanges {
    /// `*`: all but the excluded ones.
    All,
    /// Only these; none when empty.
    Only(Vec<IpNet>),
}

/// Which DNS queries go to the proxy's DNS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsCapture {
    /// None.
    Off,
    /// Those to these servers: the pod's resolvers.
    Servers(BTreeSet<IpAddr>),
    /// All.
    All,
}

/// What is captured in one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// The proxy's outbound port (`-p`, default 15001).
    pub outbound_port: u16,
    /// The proxy's inbound port (`-z`, default 15006).
    pub inbound_port: u16,
    /// The proxy's tunnel port, never captured (`-e`, default 15008).
    pub tunnel_port: u16,
    /// Users whose connections are the proxy's own, beside those with [`PROXY_MARK`](crate::PROXY_MARK) (`-u`, default none).
    pub proxy_uids: BTreeSet<u32>,
    /// Groups whose connections are the proxy's own (`-g`, default none).
    pub proxy_gids: BTreeSet<u32>,
    /// Captured inbound ports (`-b`, default none).
    pub inbound_ports: InboundPorts,
    /// Inbound ports left alone although `-b` is `*` (`-d`).
    pub excluded_inbound_ports: BTreeSet<u16>,
    /// Captured destinations (`-i`, default none).
    pub outbound_ranges: IpRanges,
    /// Destinations left alone (`-x`).
    pub excluded_outbound_ranges: Vec<IpNet>,
    /// Outbound ports captured whatever their address (`-q`).
    pub outbound_ports: BTreeSet<u16>,
    /// Outbound ports left alone (`-o`).
    pub excluded_outbound_ports: BTreeSet<u16>,
    /// Interfaces on which nothing is captured (`-c`).
    pub excluded_interfaces: BTreeSet<String>,
    /// Interfaces whose inbound connections count as outbound, for virtual machines in the pod (`-k`).
    pub vm_interfaces: BTreeSet<String>,
    /// Captured DNS queries, over UDP and TCP (`--redirect-dns` or variable `ISTIO_META_DNS_CAPTURE`, `--capture-all-dns`).
    pub dns: DnsCapture,
    /// The pod has addresses of IPv6 whose connections its proxy takes (`--dual-stack` or variable `ISTIO_DUAL_STACK`): its
    /// connections to the application come from ::6, which the loopback interface is given.
    pub dual_stack: bool,
    /// Print the rules instead of loading them (`-n`, `--dry-run`).
    pub dry_run: bool,
    /// Load nothing, because someone else does (`--skip-rule-apply`).
    pub skip_apply: bool,
}

impl Default for CaptureConfig {
    /// Istio's default ports; nothing captured.
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15008,
            proxy_uids: BTreeSet::new(),
            proxy_gids: BTreeSet::new(),
            inbound_ports: InboundPorts::Only(BTreeSet::new()),
            excluded_inbound_ports: BTreeSet::new(),
            outbound_ranges: IpRanges::Only(Vec::new()),
            excluded_outbound_ranges: Vec::new(),
            outbound_ports: BTreeSet::new(),
            excluded_outbound_ports: BTreeSet::new(),
            excluded_interfaces: BTreeSet::new(),
            vm_interfaces: BTreeSet::new(),
            dns: DnsCapture::Off,
            dual_stack: false,
            dry_run: false,
            skip_apply: false,
        }
    }
}

/// A flag's two spellings (Istio's `tools/istio-iptables`), the value read with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flag {
    OutboundPort,
    InboundPort,
    TunnelPort,
    ProxyUid,
    ProxyGid,
    Mode,
    InboundPorts,
    ExcludedInboundPorts,
    OutboundRanges,
    ExcludedOutboundRanges,
    OutboundPorts,
    ExcludedOutboundPorts,
    ExcludedInterfaces,
    VmInterfaces,
    RedirectDns,
    CaptureAllDns,
    DualStack,
    DryRun,
    SkipApply,
    /// Switches about output format and self-checks: accepted, without effect on the rules.
    InertSwitch,
    /// The same with a value.
    InertValue,
}

impl Flag {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "-p" | "--envoy-port" => Self::OutboundPort,
            "-z" | "--inbound-capture-port" => Self::InboundPort,
            "-e" | "--inbound-tunnel-port" => Self::TunnelPort,
            "-u" | "--proxy-uid" => Self::ProxyUid,
            "-g" | "--proxy-gid" => Self::ProxyGid,
            "-m" | "--istio-inbound-interception-mode" => Self::Mode,
            "-b" | "--istio-inbound-ports" => Self::InboundPorts,
            "-d" | "--istio-local-exclude-ports" => Self::ExcludedInboundPorts,
            "-i" | "--istio-service-cidr" => Self::OutboundRanges,
            "-x" | "--istio-service-exclude-cidr" => Self::ExcludedOutboundRanges,
            "-q" | "--istio-outbound-ports" => Self::OutboundPorts,
            "-o" | "--istio-local-outbound-ports-exclude" => Self::ExcludedOutboundPorts,
            "-c" | "--istio-exclude-interfaces" => Self::ExcludedInterfaces,
            "-k" | "--kube-virt-interfaces" => Self::VmInterfaces,
            "--redirect-dns" => Self::RedirectDns,
            "--capture-all-dns" => Self::CaptureAllDns,
            "--dual-stack" => Self::DualStack,
            "-n" | "--dry-run" => Self::DryRun,
            "--skip-rule-apply" => Self::SkipApply,
            "-f" | "--restore-format" | "--run-validation" | "--iptables-trace-logging" | "--force-apply" => {
                Self::InertSwitch
            }
            "--log_output_level" | "--log_as_json" | "--iptables-probe-port" | "--probe-timeout" => {
                Self::InertValue
            }
            _ => return None,
        })
    }

    fn is_switch(self) -> bool {
        matches!(
            self,
            Self::RedirectDns
                | Self::CaptureAllDns
                | Self::DualStack
                | Self::DryRun
                | Self::SkipApply
                | Self::InertSwitch
        )
    }
}

impl CaptureConfig {
    /// Reads the flags of `istio-iptables` (without the program's name): `-p 15001`, `-p15001`, `--envoy-port=15001`.
    /// A flag given twice takes its last value.
    ///
    /// # Errors
    /// [`ArgumentError`] for an unknown flag, a missing or malformed value, or the mode `TPROXY`, which isn't supported.
    pub fn from_args<I, S>(args: I) -> Result<Self, ArgumentError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let mut config = Self::default();
        let mut args = args.into_iter();
        while let Some(argument) = args.next() {
            let argument = argument.as_ref();
            let (name, attached) = split_value(argument);
            let flag = Flag::of(name).ok_or_else(|| ArgumentError {
                flag: argument.to_owned(),
                problem: "unknown flag; the flags are those of Istio's istio-iptables".to_owned(),
            })?;
            let value = match attached {
                Some(value) => value.to_owned(),
                None if flag.is_switch() => "true".to_owned(),
                None => match args.next() {
                    Some(value) => value.as_ref().to_owned(),
                    None => {
                        return Err(ArgumentError {
                            flag: name.to_owned(),
                            problem: "a value must follow".to_owned(),
                        });
                    }
                },
            };
            config
                .set(flag, value.trim())
                .map_err(|problem| ArgumentError { flag: name.to_owned(), problem })?;
        }
        Ok(config)
    }

    /// Takes over what is not in flags: `variable` reads variables (`ISTIO_META_DNS_CAPTURE`, `ISTIO_DUAL_STACK`), `resolv_conf` is
    /// the pod's `/etc/resolv.conf`, whose servers are those whose queries are captured.
    pub fn with_surroundings(&mut self, variable: impl Fn(&str) -> Option<String>, resolv_conf: &ResolvConf) {
        let on = |name| variable(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        self.dual_stack |= on("ISTIO_DUAL_STACK");
        let wanted = on("ISTIO_META_DNS_CAPTURE");
        match &mut self.dns {
            DnsCapture::Servers(servers) => servers.extend(&resolv_conf.servers),
            off @ DnsCapture::Off if wanted => {
                *off = DnsCapture::Servers(resolv_conf.servers.iter().copied().collect());
            }
            DnsCapture::Off | DnsCapture::All => {}
        }
    }

    fn set(&mut self, flag: Flag, value: &str) -> Result<(), String> {
        match flag {
            Flag::OutboundPort => self.outbound_port = port(value)?,
            Flag::InboundPort => self.inbound_port = port(value)?,
            Flag::TunnelPort => self.tunnel_port = port(value)?,
            Flag::ProxyUid => self.proxy_uids = list(value, number)?,
            Flag::ProxyGid => self.proxy_gids = list(value, number)?,
            Flag::Mode if value.is_empty() || value == "REDIRECT" => {}
            Flag::Mode => return Err(format!("mode {value:?} is not supported; use REDIRECT")),
            Flag::InboundPorts if value == "*" => self.inbound_ports = InboundPorts::All,
            Flag::InboundPorts => self.inbound_ports = InboundPorts::Only(list(value, port)?),
            Flag::ExcludedInboundPorts => self.excluded_inbound_ports = list(value, port)?,
            Flag::OutboundRanges if value == "*" => self.outbound_ranges = IpRanges::All,
            Flag::OutboundRanges => self.outbound_ranges = IpRanges::Only(ranges(value)?),
            Flag::ExcludedOutboundRanges => self.excluded_outbound_ranges = ranges(value)?,
            Flag::OutboundPorts => self.outbound_ports = list(value, port)?,
            Flag::ExcludedOutboundPorts => self.excluded_outbound_ports = list(value, port)?,
            Flag::ExcludedInterfaces => self.excluded_interfaces = list(value, interface)?,
            Flag::VmInterfaces => self.vm_interfaces = list(value, interface)?,
            // All is more than some, whatever the order of the flags.
            Flag::RedirectDns if boolean(value)? && self.dns == DnsCapture::Off => {
                self.dns = DnsCapture::Servers(BTreeSet::new());
            }
            Flag::RedirectDns => {}
            Flag::CaptureAllDns if boolean(value)? => self.dns = DnsCapture::All,
            Flag::CaptureAllDns => {}
            Flag::DualStack => self.dual_stack = boolean(value)?,
            Flag::DryRun => self.dry_run = boolean(value)?,
            Flag::SkipApply => self.skip_apply = boolean(value)?,
            Flag::InertSwitch | Flag::InertValue => {}
        }
        Ok(())
    }
}

/// Splits `--name=value` and `-nvalue`.
fn split_value(argument: &str) -> (&str, Option<&str>) {
    if argument.starts_with("--") {
        return match argument.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (argument, None),
        };
    }
    match argument.char_indices().nth(2) {
        Some((at, '=')) => (&argument[..at], Some(&argument[at + 1..])),
        Some((at, _)) => (&argument[..at], Some(&argument[at..])),
        None => (argument, None),
    }
}

fn list<T: Ord>(text: &str, item: fn(&str) -> Result<T, String>) -> Result<BTreeSet<T>, String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(item).collect()
}

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| format!("{text:?} is not a port from 1 to 65535"))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a numeric id"))
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is not true or false"))
}

/// An interface name that is safe inside an nft script.
fn interface(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    if text.len() <= 15 && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not an interface name"))
    }
}

/// CIDRs in canonical form, without those another one contains (nft rejects overlaps in a set).
fn ranges(text: &str) -> Result<Vec<IpNet>, String> {
    let all: BTreeSet<IpNet> = list(text, |part| {
        let single = part.parse::<IpAddr>().ok().map(IpNet::from);
        part.parse::<IpNet>()
            .ok()
            .or(single)
            .map(|net| net.trunc())
            .ok_or_else(|| format!("{part:?} is not an address range such as 10.0.0.0/8"))
    })?;
    let v4 = all.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None }).collect();
    let v6 = all.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None }).collect();
    let v4 = Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4);
    let v6 = Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6);
    Ok(v4.chain(v6).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<CaptureConfig, ArgumentError> {
        CaptureConfig::from_args(line.split(' ').map(|word| if word == "''" { "" } else { word }))
    }

    #[test]
    fn the_injection_templates_line() {
        let config =
            parse("-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x '' -b * -d 15090,15021,15020").unwrap();
        let expected = CaptureConfig {
            proxy_uids: BTreeSet::from([1337]),
            inbound_ports: InboundPorts::All,
            excluded_inbound_ports: BTreeSet::from([15020, 15021, 15090]),
            outbound_ranges: IpRanges::All,
            ..CaptureConfig::default()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn annotations_values() {
        let config = parse(
            "-b 80,8080 -o 3306 -q 6379,6380 -i 10.0.0.0/8,10.1.0.0/16,192.168.7.7,fd00::1/64 -x 10.96.0.1/32 -c eth1,net0 -g 1337",
        )
        .unwrap();
        assert_eq!(config.inbound_ports, InboundPorts::Only(BTreeSet::from([80, 8080])));
        assert_eq!(config.excluded_outbound_ports, BTreeSet::from([3306]));
        assert_eq!(config.outbound_ports, BTreeSet::from([6379, 6380]));
        let ranges: Vec<IpNet> =
            ["10.0.0.0/8", "192.168.7.7/32", "fd00::/64"].map(|net| net.parse().unwrap()).into();
        assert_eq!(config.outbound_ranges, IpRanges::Only(ranges));
        assert_eq!(config.excluded_outbound_ranges, ["10.96.0.1/32".parse::<IpNet>().unwrap()]);
        assert_eq!(config.excluded_interfaces, BTreeSet::from(["eth1".to_owned(), "net0".to_owned()]));
        assert_eq!(config.proxy_gids, BTreeSet::from([1337]));
    }

    #[test]
    fn spellings() {
        let long = parse(
            "--envoy-port=1 --inbound-capture-port 2 --istio-service-cidr=* --dry-run --run-validation",
        );
        let short = parse("-p1 -z=2 -i* -n");
        assert_eq!(long, short);
        assert!(short.unwrap().dry_run);
        assert_eq!(parse("-p 1 -p 2").unwrap().outbound_port, 2);
    }

    #[test]
    fn dns_by_flag_and_by_variable() {
        let conf = ResolvConf::parse("nameserver 10.96.0.10\nnameserver fd00::a\n");
        let servers =
            DnsCapture::Servers(["10.96.0.10", "fd00::a"].map(|server| server.parse().unwrap()).into());
        let with = |line: &str, variable: Option<&str>| {
            let mut config = parse(line).unwrap();
            config.with_surroundings(|_| variable.map(str::to_owned), &conf);
            config.dns
        };
        assert_eq!(with("-p 15001", None), DnsCapture::Off);
        assert_eq!(with("-p 15001", Some("false")), DnsCapture::Off);
        assert_eq!(with("-p 15001", Some("true")), servers);
        assert_eq!(with("--redirect-dns", None), servers);
        assert_eq!(with("--redirect-dns=false", None), DnsCapture::Off);
        assert_eq!(with("--capture-all-dns --redirect-dns", Some("true")), DnsCapture::All);
    }

    #[test]
    fn bad_flags() {
        let cases = [
            ("-p 0", "-p: \"0\" is not a port"),
            ("-b 80,http", "\"http\" is not a port"),
            ("-i 10.0.0.0/33", "not an address range"),
            ("-m TPROXY", "use REDIRECT"),
            ("-y 1", "-y: unknown flag"),
            ("-p", "-p: a value must follow"),
            ("-c eth0;flush", "not an interface name"),
            ("-u root", "not a numeric id"),
        ];
        for (line, message) in cases {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(message), "{line}: {error}");
        }
    }
}
