//! Mesh config, and what depends on it.
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use lateen_api::MeshConfig;
use lateen_api::mesh::CONFIG_MAP;

use super::Store;
use crate::delta::{Delta, Problem};

impl Store {
    pub(super) fn is_mesh_config(&self, map: &core::ConfigMap) -> bool {
        map.metadata.name.as_deref() == Some(CONFIG_MAP)
            && map.metadata.namespace.as_deref() == Some(&self.options.root_namespace)
    }

    pub(super) fn set_mesh(&mut self, text: Option<&str>, delta: &mut Delta) {
        match MeshConfig::parse(text.unwrap_or_default()) {
            Ok(mesh) => self.replace_mesh(mesh, delta),
            Err(error) => delta.problems.push(Problem {
                object: format!("ConfigMap {}/{CONFIG_MAP}", self.options.root_namespace),
                message: format!("{error}; the previous mesh config stays in force"),
            }),
        }
    }

    pub(super) fn replace_mesh(&mut self, mesh: MeshConfig, delta: &mut Delta) {
        if *self.world.mesh == mesh {
            return;
        }
        let visibility_changed = self.world.mesh.default_service_export_to != mesh.default_service_export_to;
        self.world.mesh = Arc::new(mesh);
        self.index_is_stale = true;
        delta.mesh = true;
        // Whom VirtualServices are exported to decides which may be delegated to.
        self.index_is_stale = true;
        if visibility_changed {
            for (name, object) in std::mem::take(&mut self.raw_services) {
                self.set_service(name, Some(object), delta);
            }
            let claimed: Vec<_> = self.claims.keys().cloned().collect();
            for key in claimed {
                self.rebuild_service(&key, delta);
            }
        }
    }
}
