//! Reading and writing the entries of machines.
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use lateen_api::{WorkloadEntry, WorkloadGroup};
use lateen_model::ObjectName;
use serde_json::json;
use tonic::Status;

use super::entry::{
    Leftover, Machine, Whereabouts, conditions_with, connected, disconnected, is_probed, is_with, judgement,
    leftover, may_have, whereabouts,
};
use crate::authenticate::Caller;

/// Times that an entry is read again which somebody else has written meanwhile.
const CONFLICTS: usize = 5;
/// Entries that are listed at a time.
const PAGE: u32 = 500;
/// How long an answer of the API server may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Why an entry is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The machine may not have it.
    #[error("{0}")]
    Refused(String),
    /// There is nothing to make it from.
    #[error("{0}")]
    Unfounded(String),
    /// The API server.
    #[error("the Kubernetes API: {0}")]
    Api(#[from] kube::Error),
    /// The API server does not answer.
    #[error("the Kubernetes API did not answer in time")]
    Silent,
}

impl From<WriteError> for Status {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Refused(_) => Self::permission_denied(message),
            WriteError::Unfounded(_) => Self::failed_precondition(message),
            WriteError::Api(_) | WriteError::Silent => Self::unavailable(message),
        }
    }
}

/// What became of a machine that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// An entry was made for it.
    Made,
    /// There was one already.
    TakenOver,
    /// Its entry is none that a machine controls.
    NotOurs,
}

fn is_conflict(error: &WriteError) -> bool {
    matches!(error, WriteError::Api(kube::Error::Api(answer)) if answer.code == 409)
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(answer) if answer.code == 404)
}

async fn answered<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    Ok(tokio::time::timeout(ANSWER, asked).await.map_err(|_| WriteError::Silent)??)
}

/// The entries of all namespaces.
pub(super) struct Entries {
    client: Client,
    controller: String,
}

impl Entries {
    pub(super) fn new(client: Client, controller: &str) -> Self {
        Self { client, controller: controller.to_owned() }
    }

    pub(super) fn is_ours(&self, controller: &str) -> bool {
        self.controller == controller
    }

    fn of(&self, namespace: &str) -> Api<WorkloadEntry> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Makes the entry of a machine, or notes in the one there is that the machine is here.
    pub(super) async fn connect(
        &self,
        machine: &Machine,
        caller: Option<&Caller>,
        now: Timestamp,
    ) -> Result<Connection, WriteError> {
        let mut conflicts = 0;
        loop {
            // Of two streams of one machine both may find no entry.
            match self.try_connect(machine, caller, now).await {
                Err(error) if is_conflict(&error) && conflicts < CONFLICTS => conflicts += 1,
                other => return other,
            }
        }
    }

    async fn try_connect(
        &self,
        machine: &Machine,
        caller: Option<&Caller>,
        now: Timestamp,
    ) -> Result<Connection, WriteError> {
        let (namespace, name) = (&machine.namespace, &machine.entry);
        let api = self.of(namespace);
        if let Some(entry) = answered(api.get_opt(name)).await? {
            if machine.group().is_none() && !is_probed(&entry) {
                return Ok(Connection::NotOurs);
            }
            may_have(caller, &entry).map_err(WriteError::Refused)?;
            let patch = Patch::Merge(connected(&self.controller, now));
            match answered(api.patch(name, &PatchParams::default(), &patch)).await {
                Ok(_) => return Ok(Connection::TakenOver),
                // Cleaned up this moment.
                Err(WriteError::Api(error)) if is_absent(&error) && machine.group().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let Some(group) = machine.group() else {
            return Err(WriteError::Unfounded(format!(
                "proxy metadata indicates that it must correspond to an existing WorkloadEntry, however \
                 WorkloadEntry {namespace}/{name} is not found"
            )));
        };
        let failed = |why: String| {
            WriteError::Unfounded(format!("auto-registration WorkloadEntry of {name} failed: {why}"))
        };
        let groups: Api<WorkloadGroup> = Api::namespaced(self.client.clone(), namespace);
        let found = answered(groups.get_opt(group)).await?;
        let found = found.ok_or_else(|| failed(format!("cannot find WorkloadGroup {namespace}/{group}")))?;
        let entry = machine
            .new_entry(&found, &self.controller, now)
            .map_err(|why| failed(format!("WorkloadGroup {namespace}/{group}: {why}")))?;
        may_have(caller, &entry).map_err(WriteError::Refused)?;
        match answered(api.create(&PostParams::default(), &entry)).await {
            Ok(_) => Ok(Connection::Made),
            // Labels of the machine that are none, for example: to come again would not help.
            Err(WriteError::Api(kube::Error::Api(answer))) if matches!(answer.code, 400 | 403 | 422) => {
                Err(failed(answer.message.clone()))
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that the machine's last stream, opened at `opened`, has ended; false when it has come back or its entry is gone.
    pub(super) async fn disconnect(
        &self,
        name: &ObjectName,
        opened: Timestamp,
        at: Timestamp,
    ) -> Result<bool, WriteError> {
        let api = self.of(&name.namespace);
        let Some(entry) = answered(api.get_opt(&name.name)).await? else { return Ok(false) };
        let Some(patch) = disconnected(&entry, &self.controller, opened, at) else { return Ok(false) };
        match answered(api.patch(&name.name, &PatchParams::default(), &Patch::Merge(patch))).await {
            Ok(_) => Ok(true),
            Err(WriteError::Api(error)) if is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes what the machine's agent says of its application.
    pub(super) async fn judge(
        &self,
        name: &ObjectName,
        problem: Option<&str>,
        at: Timestamp,
    ) -> Result<(), WriteError> {
        let api = self.of(&name.namespace);
        let mut conflicts = 0;
        loop {
            let Some(entry) = answered(api.get_opt(&name.name)).await? else { return Ok(()) };
            if !is_with(&entry, &self.controller) || !is_probed(&entry) {
                return Ok(());
            }
            let conditions = conditions_with(&entry, Some(judgement(problem, at)));
            match self.write_conditions(&api, &entry, conditions).await {
                Err(error) if is_conflict(&error) && conflicts < CONFLICTS => conflicts += 1,
                other => return other,
            }
        }
    }

    async fn write_conditions(
        &self,
        api: &Api<WorkloadEntry>,
        entry: &WorkloadEntry,
        conditions: Vec<lateen_api::object::Condition>,
    ) -> Result<(), WriteError> {
        let patch = json!({
            "metadata": { "resourceVersion": entry.metadata.resource_version },
            "status": { "conditions": conditions },
        });
        let (name, params, patch) = (entry.name_any(), PatchParams::default(), Patch::Merge(patch));
        match answered(api.patch_status(&name, &params, &patch)).await {
            Err(WriteError::Api(error)) if is_absent(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Takes away what is left of a machine that has been away for longer than it may; false when there is nothing or it is back.
    pub(super) async fn clean_up(&self, name: &ObjectName, grace: Duration) -> Result<bool, WriteError> {
        let api = self.of(&name.namespace);
        let Some(entry) = answered(api.get_opt(&name.name)).await? else { return Ok(false) };
        // Clocks are not compared to the millisecond: that time is up is known already.
        let now = Timestamp::now() + grace;
        if whereabouts(&entry, grace, now) != Whereabouts::Gone {
            return Ok(false);
        }
        self.take_away(&api, &entry).await
    }

    /// The same for an entry without care. `connected`: it says that the machine is connected, which it may by now be indeed.
    pub(super) async fn remove(&self, name: &ObjectName, connected: bool) -> Result<bool, WriteError> {
        let api = self.of(&name.namespace);
        let Some(entry) = answered(api.get_opt(&name.name)).await? else { return Ok(false) };
        let is_connected =
            matches!(whereabouts(&entry, Duration::ZERO, Timestamp::now()), Whereabouts::With(_));
        if is_connected != connected {
            return Ok(false);
        }
        self.take_away(&api, &entry).await
    }

    async fn take_away(&self, api: &Api<WorkloadEntry>, entry: &WorkloadEntry) -> Result<bool, WriteError> {
        let name = entry.name_any();
        match leftover(entry) {
            None => Ok(false),
            Some(Leftover::Health) => {
                self.write_conditions(api, entry, conditions_with(entry, None)).await?;
                Ok(false)
            }
            Some(Leftover::Entry) => {
                let preconditions = Preconditions {
                    resource_version: entry.metadata.resource_version.clone(),
                    uid: entry.metadata.uid.clone(),
                };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                match answered(api.delete(&name, &params)).await {
                    Ok(_) => {
                        let namespace = entry.namespace().unwrap_or_default();
                        tracing::info!("WorkloadEntry {namespace}/{name} is cleaned up");
                        Ok(true)
                    }
                    Err(WriteError::Api(error)) if is_absent(&error) => Ok(false),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Entries of machines that are away for longer than they may, or that a control plane says it is connected to (by its name).
    pub(super) async fn abandoned(
        &self,
        grace: Duration,
    ) -> Result<Vec<(ObjectName, Option<String>)>, WriteError> {
        let api: Api<WorkloadEntry> = Api::all(self.client.clone());
        let mut found = Vec::new();
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let listed = answered(api.list(&page)).await?;
            let now = Timestamp::now();
            for entry in listed.items.iter().filter(|entry| leftover(entry).is_some()) {
                let name = ObjectName::of(&entry.metadata);
                match whereabouts(entry, grace, now) {
                    Whereabouts::Gone => found.push((name, None)),
                    Whereabouts::With(controller) => found.push((name, Some(controller))),
                    Whereabouts::Away => {}
                }
            }
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(found),
            }
        }
    }
}
