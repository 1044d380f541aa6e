//! `istio.networking.nds.v1.NameTable`: the names that a proxy answers its application's DNS queries for.
//! <https://github.com/istio/istio/blob/master/pkg/dns/proto/nds.proto>
use std::collections::BTreeMap;

/// The name of the one resource of this type.
pub const RESOURCE: &str = "name-table";
/// [`NameInfo::registry`] of Kubernetes Services.
pub const KUBERNETES: &str = "Kubernetes";
/// [`NameInfo::registry`] of ServiceEntries.
pub const EXTERNAL: &str = "External";

/// Names with what they stand for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameTable {
    /// By host name without a final dot; it may have a leading wildcard.
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

/// What a name stands for.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NameInfo {
    /// Its addresses, of both families.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// Where it comes from: [`KUBERNETES`] names have short forms.
    #[prost(string, tag = "2")]
    pub registry: String,
    /// Of a Kubernetes name: its first part, `web` or `db-0.db`.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// Of a Kubernetes name: its namespace.
    #[prost(string, tag = "4")]
    pub namespace: String,
}

impl prost::Name for NameTable {
    const NAME: &'static str = "NameTable";
    const PACKAGE: &'static str = "istio.networking.nds.v1";

    fn type_url() -> String {
        crate::type_urls::NAME_TABLE.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn the_bytes_are_istios() {
        let info =
            NameInfo { ips: vec!["1.2.3.4".into()], registry: "External".into(), ..Default::default() };
        let table = NameTable { table: BTreeMap::from([("a.b".to_owned(), info)]) };
        let expected = b"\x0a\x1a\x0a\x03a.b\x12\x13\x0a\x071.2.3.4\x12\x08External";
        assert_eq!(table.encode_to_vec(), expected);
        assert_eq!(crate::any::pack(&table).type_url, crate::type_urls::NAME_TABLE);
    }
}
