//! What a pod has before its containers: a network, and the files of its volumes.

use kube::ResourceExt;

use super::{PodTask, RETRY, files};
use crate::RuntimeError;
use crate::events::EventKind;
use crate::sandbox::Sandbox;
use crate::sources::References;

impl PodTask {
    /// Network and volumes, tried until they succeed; false when the pod is ending before.
    pub(super) async fn set_up(&mut self) -> bool {
        let mut told = String::new();
        loop {
            self.take_update();
            if self.is_ending() {
                return false;
            }
            let (reason, error) = match self.make_sandbox().await {
                Err(error) => ("FailedCreatePodSandBox", error),
                Ok(()) => match self.make_volumes().await {
                    Err(error) => ("FailedMount", error),
                    Ok(()) => {
                        self.publish();
                        return true;
                    }
                },
            };
            // A pod may wait for days; the daemon's log has room for other things.
            let error = error.to_string();
            if told != error {
                tracing::info!(pod = %self.label(), error, "pod not set up yet");
                told.clone_from(&error);
            }
            self.shared.events.record(&self.pod, None, EventKind::Warning, reason, error);
            self.publish();
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                // A sender that has gone means the runtime is stopping.
                _ = self.changes.changed() => {}
                changed = self.updates.changed() => self.gone |= changed.is_err(),
                () = self.stop.clone().cancelled_owned() => {}
            }
        }
    }

    async fn make_sandbox(&mut self) -> Result<(), RuntimeError> {
        if self.sandbox.is_some() || self.uses_host_network() {
            return Ok(());
        }
        let network = &self.shared.config.network;
        let address = self.shared.addresses.lock().allocate().ok_or_else(|| {
            RuntimeError::Pod(format!(
                "no free address in the pods' range {}; delete some pods",
                network.pod_cidr
            ))
        })?;
        let uid = self.pod.uid().unwrap_or_default();
        match Sandbox::create(&self.shared.config.names, network, &uid, address).await {
            Ok(sandbox) => {
                self.access.set_network(&sandbox.netns);
                self.sandbox = Some(sandbox);
                Ok(())
            }
            Err(error) => {
                self.shared.addresses.lock().release(address);
                Err(error)
            }
        }
    }

    async fn make_volumes(&mut self) -> Result<(), RuntimeError> {
        let namespace = self.pod.namespace().unwrap_or_default();
        let sources = References::of_volumes(&self.pod).fetch(&self.shared.client, &namespace).await?;
        let fields = self.fields();
        self.volumes.sync(&fields, &sources, &self.shared.client).await?;
        files::write(&self.directory, &fields.pod, fields.pod_ip, &self.shared.config.network)
    }

    /// Brings the files of volumes up to date; failures are tried again with the next change or after a while.
    pub(super) async fn refresh_volumes(&mut self) {
        if let Err(error) = self.make_volumes().await {
            tracing::warn!(pod = %self.label(), %error, "volumes not brought up to date");
            self.shared.events.record(&self.pod, None, EventKind::Warning, "FailedMount", error.to_string());
        }
    }
}
