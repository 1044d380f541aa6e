//! A pod's volumes on the host.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Component, Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{
        Container, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Pod,
        ServiceAccountTokenProjection, Volume, VolumeMount,
    },
};
use kube::Client;
use nix::mount::{MsFlags, mount};

use crate::{
    RuntimeError,
    atomic_dir::{self, FileContent, Payload},
    container_run::MountSpec,
    environment::expand_with,
    fields::PodFields,
    sources::Sources,
};

/// Permissions of files from ConfigMaps, Secrets and the downward API (`defaultMode`).
const DEFAULT_MODE: i32 = 0o644;
/// What `fsGroup` adds to files' permissions, as the kubelet does.
const READABLE_BY_GROUP: u32 = 0o440;
/// Tokens live this long if the volume doesn't say (core/v1, ServiceAccountTokenProjection).
const TOKEN_SECONDS: i64 = 3600;
/// Kubernetes grants no shorter ones.
const SHORTEST_TOKEN_SECONDS: i64 = 600;

/// The volumes of one pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    directory: PathBuf,
    /// Tokens by volume and path.
    tokens: BTreeMap<(String, String), Token>,
}

#[derive(Debug)]
struct Token {
    text: String,
    refresh_at: Timestamp,
}

impl Volumes {
    /// Volumes below `directory`, which is the pod's own.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, tokens: BTreeMap::new() }
    }

    /// When the next token has to be replaced.
    pub(crate) fn next_refresh(&self) -> Option<Timestamp> {
        self.tokens.values().map(|token| token.refresh_at).min()
    }

    /// Makes or updates every volume. Also called when something they are made of may have changed.
    ///
    /// # Errors
    /// [`RuntimeError::Pod`] when a volume can't be had (yet); others when something of ours fails.
    pub(crate) async fn sync(
        &mut self,
        fields: &PodFields,
        sources: &Sources,
        client: &Client,
    ) -> Result<(), RuntimeError> {
        for volume in fields.pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default() {
            self.refresh_tokens(volume, &fields.pod, client).await?;
            let path = self.directory.join(&volume.name);
            match self.payload(volume, fields, sources) {
                Ok(Some(mut payload)) => {
                    let group = fs_group(&fields.pod);
                    if group.is_some() {
                        payload.values_mut().for_each(|content| content.mode |= READABLE_BY_GROUP);
                    }
                    atomic_dir::write(&path, &payload, group)?;
                }
                Ok(None) => make_directory(volume, &path, &fields.pod)?,
                Err(error) => {
                    return Err(RuntimeError::Pod(format!(
                        "MountVolume.SetUp failed for volume \"{}\" : {error}",
                        volume.name
                    )));
                }
            }
        }
        Ok(())
    }

    /// The files of a volume made of files; `None` for a plain directory.
    fn payload(
        &self,
        volume: &Volume,
        fields: &PodFields,
        sources: &Sources,
    ) -> Result<Option<Payload>, RuntimeError> {
        let mut payload = Payload::new();
        if let Some(source) = &volume.config_map {
            let data = sources.config_map(&source.name, source.optional)?;
            add_keys(&mut payload, &data, source.items.as_deref(), source.default_mode, source.optional)?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or("");
            let data = sources.secret(name, source.optional)?;
            add_keys(&mut payload, &data, source.items.as_deref(), source.default_mode, source.optional)?;
        } else if let Some(source) = &volume.downward_api {
            add_fields(&mut payload, source.items.as_deref(), source.default_mode, fields)?;
        } else if let Some(projected) = &volume.projected {
            let mode = projected.default_mode;
            for source in projected.sources.iter().flatten() {
                if let Some(source) = &source.config_map {
                    let data = sources.config_map(&source.name, source.optional)?;
                    add_keys(&mut payload, &data, source.items.as_deref(), mode, source.optional)?;
                }
                if let Some(source) = &source.secret {
                    let data = sources.secret(&source.name, source.optional)?;
                    add_keys(&mut payload, &data, source.items.as_deref(), mode, source.optional)?;
                }
                if let Some(source) = &source.downward_api {
                    add_fields(&mut payload, source.items.as_deref(), mode, fields)?;
                }
                if let Some(source) = &source.service_account_token {
                    let key = (volume.name.clone(), source.path.clone());
                    let token = self.tokens.get(&key).map(|token| token.text.clone()).unwrap_or_default();
                    add(&mut payload, &source.path, token.into_bytes(), mode);
                }
            }
        } else {
            return Ok(None);
        }
        Ok(Some(payload))
    }

    async fn refresh_tokens(
        &mut self,
        volume: &Volume,
        pod: &Pod,
        client: &Client,
    ) -> Result<(), RuntimeError> {
        let sources = volume.projected.as_ref().and_then(|projected| projected.sources.as_deref());
        for source in sources.unwrap_or_default() {
            let Some(source) = &source.service_account_token else { continue };
            let key = (volume.name.clone(), source.path.clone());
            if self.tokens.get(&key).is_some_and(|token| token.refresh_at > Timestamp::now()) {
                continue;
            }
            let token = request_token(source, pod, client).await?;
            self.tokens.insert(key, token);
        }
        Ok(())
    }

    /// What of the volumes a container sees, in the order of its mounts.
    ///
    /// # Errors
    /// [`RuntimeError::Pod`] when a mount names no volume, or its sub-path leaves the volume.
    pub(crate) fn mounts(
        &self,
        container: &Container,
        pod: &Pod,
        environment: &[(String, String)],
    ) -> Result<Vec<MountSpec>, RuntimeError> {
        let volumes: Vec<&Volume> =
            pod.spec.iter().filter_map(|spec| spec.volumes.as_ref()).flatten().collect();
        container
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| {
                let volume = volumes.iter().find(|volume| volume.name == mount.name).ok_or_else(|| {
                    RuntimeError::Pod(format!("volumeMount {:?} names no volume of the pod", mount.name))
                })?;
                let root = match &volume.host_path {
                    Some(host) => PathBuf::from(&host.path),
                    None => self.directory.join(&volume.name),
                };
                Ok(MountSpec {
                    source: sub_path(&root, mount, environment)?,
                    target: Path::new("/").join(&mount.mount_path),
                    read_only: mount.read_only.unwrap_or(false) || has_files(volume),
                })
            })
            .collect()
    }
}

/// The group whose files the pod's volumes are (`fsGroup`).
fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Volumes made of files are read-only, as in Kubernetes.
fn has_files(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn sub_path(
    root: &Path,
    mount: &VolumeMount,
    environment: &[(String, String)],
) -> Result<PathBuf, RuntimeError> {
    let path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) if !expression.is_empty() => expand_with(expression, environment),
        _ => return Ok(root.to_path_buf()),
    };
    let inside =
        Path::new(&path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(RuntimeError::Pod(format!("subPath {path:?} must be relative and without '..'")));
    }
    let full = root.join(path);
    if !full.exists() {
        fs::create_dir_all(&full).map_err(RuntimeError::file(&full))?;
    }
    Ok(full)
}

/// A directory for whatever the container writes; hostPath volumes are checked instead.
fn make_directory(volume: &Volume, path: &Path, pod: &Pod) -> Result<(), RuntimeError> {
    if let Some(host) = &volume.host_path {
        return check_host_path(host);
    }
    let Some(source) = &volume.empty_dir else {
        return Err(RuntimeError::Pod(format!(
            "volume \"{}\" is of a type this runtime does not have; it has configMap, secret, projected, downwardAPI, emptyDir and hostPath",
            volume.name
        )));
    };
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(RuntimeError::file(path))?;
    if source.medium.as_deref() == Some("Memory") {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0777"))
            .map_err(RuntimeError::system(format!("mounting memory on {}", path.display())))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(RuntimeError::file(path))?;
    if let Some(group) = fs_group(pod) {
        chown(path, None, Some(group)).map_err(RuntimeError::file(path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o2777)).map_err(RuntimeError::file(path))?;
    }
    Ok(())
}

fn check_host_path(host: &HostPathVolumeSource) -> Result<(), RuntimeError> {
    let path = Path::new(&host.path);
    let kind = host.type_.as_deref().unwrap_or("");
    let fits = match kind {
        "DirectoryOrCreate" => {
            fs::create_dir_all(path).map_err(RuntimeError::file(path))?;
            true
        }
        "FileOrCreate" => {
            if !path.exists() {
                fs::File::create(path).map_err(RuntimeError::file(path))?;
            }
            path.is_file()
        }
        "Directory" => path.is_dir(),
        "File" => path.is_file(),
        _ => path.exists(),
    };
    if fits {
        Ok(())
    } else {
        Err(RuntimeError::Pod(format!("hostPath type check failed: {} is not {kind}", host.path)))
    }
}

fn add(payload: &mut Payload, path: &str, bytes: Vec<u8>, mode: Option<i32>) {
    let mode = u32::try_from(mode.unwrap_or(DEFAULT_MODE)).unwrap_or(0) & 0o777;
    payload.insert(PathBuf::from(path), FileContent { bytes, mode });
}

/// All keys, or those of `items` under their paths.
fn add_keys(
    payload: &mut Payload,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    mode: Option<i32>,
    optional: Option<bool>,
) -> Result<(), RuntimeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in data {
            add(payload, key, bytes.clone(), mode);
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => add(payload, &item.path, bytes.clone(), item.mode.or(mode)),
            None if optional == Some(true) => {}
            None => {
                return Err(RuntimeError::Pod(format!("references non-existent key: {}", item.key)));
            }
        }
    }
    Ok(())
}

fn add_fields(
    payload: &mut Payload,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: Option<i32>,
    fields: &PodFields,
) -> Result<(), RuntimeError> {
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(reference), _) => fields.field(&reference.field_path)?,
            (None, Some(reference)) => fields.resource(reference, None)?,
            (None, None) => continue,
        };
        add(payload, &item.path, text.into_bytes(), item.mode.or(mode));
    }
    Ok(())
}

/// A token bound to the pod, to be replaced when four fifths of its time are over (as the kubelet does).
async fn request_token(
    source: &ServiceAccountTokenProjection,
    pod: &Pod,
    client: &Client,
) -> Result<Token, RuntimeError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let account = account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
    let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS).max(SHORTEST_TOKEN_SECONDS);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(source.audience.clone().into_iter().collect()),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let what = format!("requesting a token for the service account {namespace}/{account}");
    let body = serde_json::to_vec(&request).map_err(|error| RuntimeError::Config(error.to_string()))?;
    let uri = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let http = http::Request::post(uri)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| RuntimeError::Config(format!("{what}: {error}")))?;
    let answer: TokenRequest = client.request(http).await.map_err(RuntimeError::api(what.clone()))?;
    let granted = answer.status.and_then(|status| Some((status.token?, status.expiration_timestamp?.0)));
    let (text, expires_at) = granted.ok_or_else(|| RuntimeError::Pod(format!("{what}: empty answer")))?;
    let now = Timestamp::now();
    let life = i64::try_from(expires_at.duration_since(now).as_millis()).unwrap_or(0);
    let refresh_at = now.checked_add(SignedDuration::from_millis(life / 5 * 4)).unwrap_or(expires_at);
    Ok(Token { text, refresh_at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::tests::pod;
    use serde_json::json;
    use std::net::Ipv4Addr;

    fn volumes() -> Volumes {
        Volumes::new(std::env::temp_dir().join(format!("lateen-volumes-{}", std::process::id())))
    }

    #[test]
    fn files_of_every_kind() {
        let pod = pod(json!({ "containers": [{ "name": "app" }], "volumes": [
            { "name": "cm", "configMap": { "name": "cm", "items": [{ "key": "k", "path": "dir/k", "mode": 256 }] } },
            { "name": "opt", "secret": { "secretName": "none", "optional": true } },
            { "name": "info", "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } },
            { "name": "all", "projected": { "defaultMode": 416, "sources": [
                { "secret": { "name": "s" } }, { "serviceAccountToken": { "path": "token" } }
            ] } },
            { "name": "bad", "configMap": { "name": "cm", "items": [{ "key": "no", "path": "x" }] } }
        ] }));
        let fields = PodFields {
            pod: std::sync::Arc::new(pod.clone()),
            pod_ip: Ipv4Addr::LOCALHOST,
            host_ip: Ipv4Addr::LOCALHOST,
            pod_ip6: None,
            host_ip6: None,
        };
        let mut sources = Sources::default();
        sources
            .config_maps
            .insert("cm".into(), serde_json::from_value(json!({ "data": { "k": "v" } })).unwrap());
        sources
            .secrets
            .insert("s".into(), serde_json::from_value(json!({ "data": { "p": "cHc=" } })).unwrap());
        let mut volumes = volumes();
        let token = Token { text: "jwt".into(), refresh_at: Timestamp::MAX };
        volumes.tokens.insert(("all".into(), "token".into()), token);
        let list = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
        let shown = |number: usize| {
            let payload = volumes.payload(&list[number], &fields, &sources).map(Option::unwrap);
            payload.map(|payload| {
                let files = payload.iter().map(|(path, file)| {
                    format!("{} {:o} {}", path.display(), file.mode, String::from_utf8_lossy(&file.bytes))
                });
                files.collect::<Vec<_>>().join("; ")
            })
        };
        assert_eq!(shown(0).unwrap(), "dir/k 400 v");
        assert_eq!(shown(1).unwrap(), "");
        assert_eq!(shown(2).unwrap(), "labels 644 app=\"web\"\nversion=\"v1\"");
        assert_eq!(shown(3).unwrap(), "p 640 pw; token 640 jwt");
        assert!(shown(4).unwrap_err().to_string().contains("non-existent key: no"));
    }

    #[test]
    fn mounts_and_sub_paths() {
        let pod = pod(json!({
            "containers": [{ "name": "app", "volumeMounts": [
                { "name": "data", "mountPath": "/data", "subPathExpr": "$(POD)/x" },
                { "name": "cm", "mountPath": "/etc/cm" },
                { "name": "host", "mountPath": "/host", "readOnly": true }
            ] }, { "name": "bad", "volumeMounts": [{ "name": "data", "mountPath": "/d", "subPath": "../.." }] }],
            "volumes": [{ "name": "data", "emptyDir": {} }, { "name": "cm", "configMap": { "name": "cm" } }, { "name": "host", "hostPath": { "path": "/usr" } }]
        }));
        let containers = &pod.spec.as_ref().unwrap().containers;
        let volumes = volumes();
        let mounts = volumes.mounts(&containers[0], &pod, &[("POD".into(), "p1".into())]).unwrap();
        let shown: Vec<_> = mounts
            .iter()
            .map(|mount| {
                (
                    mount.source.strip_prefix(&volumes.directory).unwrap_or(&mount.source).to_str().unwrap(),
                    mount.read_only,
                )
            })
            .collect();
        assert_eq!(shown, [("data/p1/x", false), ("cm", true), ("/usr", true)]);
        assert!(volumes.mounts(&containers[1], &pod, &[]).is_err());
        fs::remove_dir_all(&volumes.directory).unwrap();
    }
}
