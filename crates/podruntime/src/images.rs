//! From an image reference to a command: the embedded cluster pulls nothing.
//!
//! | image | runs |
//! |---|---|
//! | `lateen/pilot` | `lateend ARGS` |
//! | `lateen/proxyv2` | `lateen-proxy ARGS` |
//! | `tetratelabs/hello-world`, `customers`, `web-frontend` | `lateen-samples hello-world`, `customers --tag TAG`, `web-frontend` |
//! | `kong/httpbin`, `kennethreitz/httpbin` | `lateen-samples httpbin` |
//! | `mccutchen/go-httpbin` | `lateen-samples httpbin --port 8080 --style go` |
//! | `google-samples/microservices-demo/frontend`, `…/productcatalogservice`, `…/recommendationservice` | `lateen-samples frontend --tag TAG`, … |
//! | `lateen/echo`, `lateen/load` | `lateen-samples echo`, `load` |
//! | `curlimages/curl`, `busybox`, `alpine`, `nginx`, … | the container's own command, on the host's tools |

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::RuntimeError;

/// Where containers see our own programs: whoever may not look into the folder they are in on this machine can run them too.
pub const PROGRAMS: &str = "/run/lateen/bin";

/// What a container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Program and arguments; the program is an absolute path or looked up in `PATH`. Never empty.
    pub command: Vec<String>,
}

/// What an image stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mapping {
    /// One of our own programs with fixed first arguments; the container's `command` only matters if the image has a shell.
    Ours { program: &'static str, arguments: &'static [&'static str], tag_flag: bool, shell: bool },
    /// The host's tools; the default command when the container has none. Arguments alone that are no program of their own (an
    /// option or an address) are for `entrypoint`.
    Host { default: &'static [&'static str], entrypoint: Option<&'static str> },
    /// A command line given by the user; the container's arguments are appended.
    Custom { command: Vec<String> },
}

/// Image references → commands. Matching ignores tag, digest and a default registry.
#[derive(Debug, Clone)]
pub struct ImageMap {
    binaries: PathBuf,
    custom: BTreeMap<String, Vec<String>>,
}

impl ImageMap {
    /// The built-in map; our own programs are in the folder `binaries`, which containers see as [`PROGRAMS`].
    pub fn new(binaries: PathBuf) -> Self {
        Self { binaries, custom: BTreeMap::new() }
    }

    /// The folder of our own programs.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// Adds or overrides a mapping given as `REF=COMMAND` (split at spaces; quotes group words as in a shell).
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when there is no `=`, an empty side, or an open quote.
    pub fn add(&mut self, mapping: &str) -> Result<(), RuntimeError> {
        let bad = |why: &str| {
            RuntimeError::Config(format!(
                "image mapping {mapping:?}: {why}; expected REF=COMMAND, for example `example/app=/opt/app --port 8080`"
            ))
        };
        let (image, command) = mapping.split_once('=').ok_or_else(|| bad("there is no '='"))?;
        let command = split_words(command).ok_or_else(|| bad("a quote is not closed"))?;
        if image.trim().is_empty() || command.is_empty() {
            return Err(bad("one side is empty"));
        }
        self.custom.insert(repository(image.trim()).to_owned(), command);
        Ok(())
    }

    /// The command for a container with this image, `command` and `args`.
    ///
    /// As in Kubernetes, `command` replaces the image's program and `args` its arguments. Images of our own programs keep
    /// their program; for those with a shell on board (the samples) a `command` is run as it is.
    ///
    /// # Errors
    /// [`RuntimeError::Pod`] when the image has no mapping (the message names the flag) or there is nothing to run.
    pub fn resolve(
        &self,
        image: &str,
        command: &[String],
        args: &[String],
    ) -> Result<Invocation, RuntimeError> {
        let name = repository(image);
        let mapping = match self.custom.get(name) {
            Some(command) => Mapping::Custom { command: command.clone() },
            None => built_in(name).ok_or_else(|| {
                RuntimeError::Pod(format!(
                    "no mapping for image {image}; map it with `lateen up --image {name}=COMMAND`"
                ))
            })?,
        };
        let command = match mapping {
            Mapping::Ours { shell: true, .. } if !command.is_empty() && !self.is_ours(&command[0]) => {
                [command, args].concat()
            }
            Mapping::Ours { program, arguments, tag_flag, .. } => {
                let mut line = vec![Path::new(PROGRAMS).join(program).to_string_lossy().into_owned()];
                line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
                if tag_flag {
                    line.extend(["--tag".to_owned(), tag(image).to_owned()]);
                }
                line.extend(command.iter().skip(1).cloned());
                line.extend(args.iter().cloned());
                line
            }
            Mapping::Host { default, .. } if command.is_empty() && args.is_empty() => {
                default.iter().map(|word| (*word).to_owned()).collect()
            }
            Mapping::Host { entrypoint: Some(program), .. }
                if command.is_empty() && (args[0].starts_with('-') || args[0].contains("://")) =>
            {
                [&[program.to_owned()], args].concat()
            }
            Mapping::Host { .. } => [command, args].concat(),
            Mapping::Custom { command: mut line } => {
                line.extend(args.iter().cloned());
                line
            }
        };
        if command.is_empty() {
            return Err(RuntimeError::Pod(format!(
                "image {image} has no command of its own here; give the container a `command`, or map the image with `lateen up --image {name}=COMMAND`"
            )));
        }
        Ok(Invocation { command })
    }

    /// Whether `program` (as written in a container's `command`) is one of our own programs.
    fn is_ours(&self, program: &str) -> bool {
        our_program(program).is_some()
    }
}

/// The name of one of our own programs, wherever in an image it is said to be.
pub(crate) fn our_program(program: &str) -> Option<&str> {
    let name = program.rsplit('/').next().unwrap_or(program);
    ["lateend", "lateen-proxy", "lateen-samples"].contains(&name).then_some(name)
}

fn built_in(name: &str) -> Option<Mapping> {
    let ours = |program, arguments, tag_flag, shell| Mapping::Ours { program, arguments, tag_flag, shell };
    let host = |default| Mapping::Host { default, entrypoint: None };
    // Repositories of the course's images appear under several registries; the last two parts tell them apart.
    let mut parts = name.rsplit('/');
    let last = parts.next()?;
    let owner = parts.next().unwrap_or("");
    Some(match (owner, last) {
        ("lateen", "pilot") => ours("lateend", &[], false, false),
        ("lateen", "proxyv2") => ours("lateen-proxy", &[], false, false),
        ("lateen", "load") => ours("lateen-samples", &["load"], false, true),
        ("lateen", "echo") => ours("lateen-samples", &["echo"], false, true),
        ("lateen" | "istio" | "istio-testing", "ext-authz") => {
            ours("lateen-samples", &["ext-authz"], false, true)
        }
        ("tetratelabs", "hello-world") => ours("lateen-samples", &["hello-world"], false, true),
        ("tetratelabs", "customers") => ours("lateen-samples", &["customers"], true, true),
        ("tetratelabs", "web-frontend") => ours("lateen-samples", &["web-frontend"], false, true),
        ("microservices-demo", "frontend") => ours("lateen-samples", &["frontend"], true, true),
        ("microservices-demo", "productcatalogservice") => {
            ours("lateen-samples", &["productcatalogservice"], false, true)
        }
        ("microservices-demo", "recommendationservice") => {
            ours("lateen-samples", &["recommendationservice"], false, true)
        }
        ("kong" | "kennethreitz", "httpbin") => ours("lateen-samples", &["httpbin"], false, true),
        ("mccutchen", "go-httpbin") => {
            ours("lateen-samples", &["httpbin", "--port", "8080", "--style", "go"], false, true)
        }
        ("curlimages", "curl") | ("governmentpaas", "curl-ssl") => {
            Mapping::Host { default: &["sleep", "infinity"], entrypoint: Some("curl") }
        }
        ("radial", "busyboxplus") | ("", "busybox" | "alpine" | "debian" | "ubuntu" | "bash") => {
            host(&["sh"])
        }
        ("", "nginx") => host(&["nginx", "-g", "daemon off;"]),
        ("", "python") => host(&["python3"]),
        _ => return None,
    })
}

/// The repository of an image reference: without digest and tag, and without Docker Hub's default registry and owner.
fn repository(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let name = match image.rsplit_once(':') {
        // A colon before the last slash belongs to the registry's port.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    };
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("index.docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

/// The tag of an image reference, `latest` when there is none.
fn tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    match image.rsplit_once(':') {
        Some((_, tag)) if !tag.contains('/') => tag,
        _ => "latest",
    }
}

/// Splits a command line at white space; single and double quotes group. `None` when a quote stays open.
fn split_words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(character),
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, _) if character.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> ImageMap {
        ImageMap::new(PathBuf::from("/opt/lateen"))
    }

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn built_in_images() {
        let cases = [
            ("lateen/pilot:dev", "", "discovery", "/run/lateen/bin/lateend discovery"),
            ("docker.io/lateen/proxyv2", "", "proxy sidecar", "/run/lateen/bin/lateen-proxy proxy sidecar"),
            ("lateen/proxyv2", "/usr/local/bin/lateen-proxy wait", "", "/run/lateen/bin/lateen-proxy wait"),
            (
                "gcr.io/tetratelabs/customers:2.0.0",
                "",
                "",
                "/run/lateen/bin/lateen-samples customers --tag 2.0.0",
            ),
            ("gcr.io/tetratelabs/web-frontend:1.0.0", "", "", "/run/lateen/bin/lateen-samples web-frontend"),
            ("gcr.io/tetratelabs/hello-world:1.0.0", "sh -c", "true", "sh -c true"),
            (
                "us-central1-docker.pkg.dev/google-samples/microservices-demo/frontend:v0.10.2",
                "",
                "",
                "/run/lateen/bin/lateen-samples frontend --tag v0.10.2",
            ),
            (
                "gcr.io/google-samples/microservices-demo/productcatalogservice:v0.9.0",
                "",
                "",
                "/run/lateen/bin/lateen-samples productcatalogservice",
            ),
            ("gcr.io/istio-testing/ext-authz:latest", "", "", "/run/lateen/bin/lateen-samples ext-authz"),
            ("docker.io/kong/httpbin:0.1.0", "", "", "/run/lateen/bin/lateen-samples httpbin"),
            (
                "docker.io/mccutchen/go-httpbin:v2.15.0",
                "",
                "",
                "/run/lateen/bin/lateen-samples httpbin --port 8080 --style go",
            ),
            ("curlimages/curl:latest", "/bin/sleep infinity", "", "/bin/sleep infinity"),
            ("curlimages/curl@sha256:0123", "", "", "sleep infinity"),
            ("curlimages/curl", "", "-s http://web/", "curl -s http://web/"),
            ("curlimages/curl", "", "http://web/", "curl http://web/"),
            ("curlimages/curl", "", "sleep infinity", "sleep infinity"),
            ("radial/busyboxplus:curl", "", "", "sh"),
            ("localhost:5000/library/nginx", "", "", ""),
            ("docker.io/library/busybox:1.36", "", "ls /", "ls /"),
        ];
        for (image, command, args, expected) in cases {
            let result = map().resolve(image, &words(command), &words(args));
            match result {
                Ok(invocation) => assert_eq!(invocation.command, words(expected), "{image}"),
                Err(error) => {
                    assert!(expected.is_empty(), "{image}: {error}");
                    assert!(
                        error.to_string().contains("--image localhost:5000/library/nginx=COMMAND"),
                        "{error}"
                    );
                }
            }
        }
    }

    #[test]
    fn custom_images_override() {
        let mut map = map();
        map.add("example.com/shop/cart:v1=python3 -c 'import app; app.run()' \"\"").unwrap();
        map.add("nginx=/opt/nginx").unwrap();
        let cart = map.resolve("example.com/shop/cart:v2", &[], &["--x".to_owned()]).unwrap();
        assert_eq!(cart.command, ["python3", "-c", "import app; app.run()", "", "--x"]);
        assert_eq!(map.resolve("docker.io/library/nginx:1", &[], &[]).unwrap().command, ["/opt/nginx"]);
        for bad in ["nginx", "=x", "nginx=", "nginx='a"] {
            assert!(map.add(bad).unwrap_err().to_string().contains("REF=COMMAND"), "{bad}");
        }
    }
}
