//! What can go wrong while pods are run.

use std::path::{Path, PathBuf};

/// Why the runtime could not do something. Messages say what happened, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A value handed in makes no sense.
    #[error("{0}")]
    Config(String),
    /// The machine lacks something; the text names it and the remedy.
    #[error("{0}")]
    Host(String),
    /// A host tool ended with an error.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command line.
        command: String,
        /// What it wrote to standard error.
        output: String,
    },
    /// A file or directory.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A system call.
    #[error("{what}: {source}")]
    System {
        /// What was attempted, with its object.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The API server.
    #[error("{what}: {source}")]
    Api {
        /// What was attempted, with its object.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// Something in the pod's own specification can't be honoured; the text is shown in its status.
    #[error("{0}")]
    Pod(String),
}

impl RuntimeError {
    pub(crate) fn file(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.as_ref().to_path_buf(), source }
    }

    pub(crate) fn system<E: Into<std::io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what: what.into(), source: source.into() }
    }

    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { what: what.into(), source: Box::new(source) }
    }
}
