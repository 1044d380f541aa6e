//! Upgrades and tunnels of a route.

use lateen_xds::pb::envoy::config::route::v3 as proto;

use super::values::{Converted, bool_or};
use crate::UpgradeConfig;
use crate::error::At;
use crate::support::fields;

pub(super) fn route_upgrades(
    at: &At<'_>,
    configs: Vec<proto::route_action::UpgradeConfig>,
) -> Converted<Vec<UpgradeConfig>> {
    let convert = |(index, config): (usize, proto::route_action::UpgradeConfig)| {
        let at = at.index("upgrade_configs", index);
        fields!(&at, config => proto::route_action::UpgradeConfig {
            used { upgrade_type, enabled, connect_config }
            inert {}
            rejected {}
        });
        let upgrade_type = super::hcm::upgrade(&at, &upgrade_type)?;
        if connect_config.is_some() && &*upgrade_type != "connect" {
            // Envoy's own words.
            let reason = format!("Non-CONNECT upgrade type {upgrade_type} has ConnectConfig");
            return Err(at.error_in("connect_config", reason));
        }
        if let Some(config) = &connect_config {
            self::connect_config(&at.field("connect_config"), config.clone())?;
        }
        let terminates = connect_config.is_some();
        Ok(UpgradeConfig { upgrade_type, enabled: bool_or(enabled, true), terminates })
    };
    configs.into_iter().enumerate().map(convert).collect()
}

fn connect_config(at: &At<'_>, config: proto::route_action::upgrade_config::ConnectConfig) -> Converted<()> {
    fields!(at, config => proto::route_action::upgrade_config::ConnectConfig {
        used {}
        inert {}
        rejected {
            proxy_protocol_config = "the PROXY protocol in front of what a tunnel carries",
            allow_post = "POST as CONNECT",
        }
    });
    Ok(())
}
