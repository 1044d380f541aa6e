//! `/etc/resolv.conf`: who is asked for names, and in which domains (resolv.conf(5)).

use std::{net::IpAddr, path::Path};

/// As the C library, no more servers are asked.
const MOST_SERVERS: usize = 3;

/// What of the file matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// The servers, at most three.
    pub servers: Vec<IpAddr>,
    /// Domains that short names are tried in, in lower case without a final dot. The last `search` or `domain` line counts.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads a file; one that cannot be read says nothing.
    pub fn read(path: &Path) -> Self {
        std::fs::read_to_string(path).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// Reads its text. Lines that make no sense are left out, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()))
                }
                Some("search" | "domain") => {
                    let domain = |word: &str| word.trim_end_matches('.').to_ascii_lowercase();
                    conf.search = words.map(domain).filter(|domain| !domain.is_empty()).collect();
                }
                _ => {}
            }
        }
        conf.servers.truncate(MOST_SERVERS);
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_domains() {
        let text = "# a pod's\ndomain old\nsearch shop.svc.cluster.local. Svc.cluster.local\nnameserver 10.96.0.10\n\
                    nameserver none\nnameserver fd00::a\nnameserver 1.1.1.1\nnameserver 8.8.8.8\noptions ndots:5\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.search, ["shop.svc.cluster.local", "svc.cluster.local"]);
        let servers: Vec<IpAddr> =
            ["10.96.0.10", "fd00::a", "1.1.1.1"].map(|server| server.parse().unwrap()).into();
        assert_eq!(conf.servers, servers);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }
}
