//! A proxy's configuration dump, in lowerCamelCase as istioctl prints it.

use lateen_xds::json::{JsonCodec, JsonError};
use serde_json::Value;

use super::items;

/// Why a dump can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but not what the admin service gives.
    #[error("not a configuration dump of a proxy: {0}")]
    Mapping(#[from] JsonError),
    /// The part that was asked for is not in it.
    #[error("the dump has no {0}; it must come from /config_dump")]
    Missing(&'static str),
}

/// The answer of `/config_dump`.
#[derive(Clone, Debug)]
pub struct Dump {
    value: Value,
}

impl Dump {
    /// Reads what `/config_dump` gives, or a file with it; names may be in either spelling.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(bytes: &[u8]) -> Result<Self, DumpError> {
        let value = serde_json::from_slice(bytes)?;
        Ok(Self { value: JsonCodec::new()?.camel_case("envoy.admin.v3.ConfigDump", &value)? })
    }

    /// All of it.
    pub fn value(&self) -> &Value {
        &self.value
    }

    fn section(&self, name: &'static str) -> Result<&Value, DumpError> {
        let mut sections = items(&self.value, "/configs").iter();
        let section =
            sections.find(|s| s["@type"].as_str().is_some_and(|url| url.ends_with(&format!(".{name}"))));
        section.ok_or(DumpError::Missing(name))
    }

    /// What it was started with: `{"bootstrap": …}`.
    ///
    /// # Errors
    /// When the dump has none.
    pub fn bootstrap(&self) -> Result<Value, DumpError> {
        let bootstrap = &self.section("BootstrapConfigDump")?["bootstrap"];
        Ok(serde_json::json!({ "bootstrap": bootstrap }))
    }

    /// Listeners in use.
    ///
    /// # Errors
    /// When the dump has no such section.
    pub fn listeners(&self) -> Result<Vec<&Value>, DumpError> {
        let section = self.section("ListenersConfigDump")?;
        let dynamic =
            items(section, "/dynamicListeners").iter().filter_map(|l| l.pointer("/activeState/listener"));
        Ok(dynamic.chain(members(section, "/staticListeners", "listener")).collect())
    }

    /// Route configurations, those of listeners' own included.
    ///
    /// # Errors
    /// When the dump has no such section.
    pub fn routes(&self) -> Result<Vec<&Value>, DumpError> {
        let section = self.section("RoutesConfigDump")?;
        let dynamic = members(section, "/dynamicRouteConfigs", "routeConfig");
        Ok(dynamic.chain(members(section, "/staticRouteConfigs", "routeConfig")).collect())
    }

    /// Secrets with what becomes of them: `ACTIVE` or `WARMING`. None in the dump is none at all.
    pub fn secrets(&self) -> Vec<(&'static str, &Value)> {
        let Ok(section) = self.section("SecretsConfigDump") else { return Vec::new() };
        let lists = [
            ("ACTIVE", "/staticSecrets"),
            ("ACTIVE", "/dynamicActiveSecrets"),
            ("WARMING", "/dynamicWarmingSecrets"),
        ];
        lists
            .into_iter()
            .flat_map(|(status, list)| items(section, list).iter().map(move |entry| (status, entry)))
            .collect()
    }

    /// Load assignments; none without `?include_eds`.
    pub fn endpoints(&self) -> Vec<&Value> {
        let Ok(section) = self.section("EndpointsConfigDump") else { return Vec::new() };
        let dynamic = members(section, "/dynamicEndpointConfigs", "endpointConfig");
        dynamic.chain(members(section, "/staticEndpointConfigs", "endpointConfig")).collect()
    }

    /// Clusters in use.
    ///
    /// # Errors
    /// When the dump has no such section.
    pub fn clusters(&self) -> Result<Vec<&Value>, DumpError> {
        let section = self.section("ClustersConfigDump")?;
        let dynamic = members(section, "/dynamicActiveClusters", "cluster");
        Ok(dynamic.chain(members(section, "/staticClusters", "cluster")).collect())
    }
}

fn members<'a>(section: &'a Value, list: &str, member: &'static str) -> impl Iterator<Item = &'a Value> {
    items(section, list).iter().filter_map(move |entry| entry.get(member))
}

/// Reads what `/clusters?format=json` gives, or a file with it: one `ClusterStatus` for each cluster.
///
/// # Errors
/// When it is something else.
pub fn cluster_statuses(bytes: &[u8]) -> Result<Vec<Value>, DumpError> {
    let value = serde_json::from_slice(bytes)?;
    let clusters = JsonCodec::new()?.camel_case("envoy.admin.v3.Clusters", &value)?;
    Ok(items(&clusters, "/clusterStatuses").to_vec())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Taken from a stock Envoy that ran the course's resources.
    pub(crate) fn saved() -> Dump {
        Dump::parse(include_bytes!("../../tests/dumps/config_dump.json")).unwrap()
    }

    pub(crate) fn saved_clusters() -> Vec<Value> {
        cluster_statuses(include_bytes!("../../tests/dumps/clusters.json")).unwrap()
    }

    #[test]
    fn every_section_is_found() {
        let dump = saved();
        assert_eq!(dump.listeners().unwrap().len(), 4);
        assert!(dump.clusters().unwrap().len() >= 9);
        assert!(dump.routes().unwrap().iter().any(|route| route["name"] == "80"));
        let bootstrap = dump.bootstrap().unwrap();
        assert_eq!(bootstrap["bootstrap"]["node"]["cluster"], "web-frontend.default");
    }

    #[test]
    fn a_printed_dump_can_be_read_again() {
        let dump = saved();
        let again = Dump::parse(dump.value().to_string().as_bytes()).unwrap();
        assert_eq!(again.value(), dump.value());
    }

    #[test]
    fn something_else_is_refused() {
        assert!(matches!(Dump::parse(b"<html>"), Err(DumpError::Json(_))));
        assert!(
            Dump::parse(b"{\"items\": []}").unwrap_err().to_string().contains("not a configuration dump")
        );
        assert!(matches!(Dump::parse(b"{}").unwrap().routes(), Err(DumpError::Missing(_))));
    }
}
