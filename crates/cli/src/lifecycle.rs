//! `lateen up`, `down` and `kubeconfig`: the embedded cluster's life, with its progress shown.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use lateen_local::{DownOptions, Engine, LifecycleError, Progress, UpOptions, UpSummary};

use crate::args::{EngineArg, UpArgs};
use crate::error::Failure;
use crate::output;
use crate::style::Style;

/// Starts the cluster and says how to use it.
///
/// # Errors
/// What went wrong, as a sentence with a remedy.
pub(crate) async fn up(state: &Path, args: &UpArgs) -> Result<()> {
    let options = UpOptions {
        state: state.to_owned(),
        engine: match args.engine {
            EngineArg::Lateen => Engine::Lateen,
            EngineArg::Envoy => Engine::Envoy,
        },
        images: args.images.clone(),
        sample: !args.no_sample,
        egress_gateway: args.egress_gateway,
        ..UpOptions::default()
    };
    let mut lines = ProgressLines::start();
    let result = lateen_local::up(&options, &mut |progress| lines.show(&progress)).await;
    lines.end();
    let mut summary = result.map_err(advise)?;
    let own = own_command(&std::env::current_exe().unwrap_or_default(), std::env::var_os("PATH").as_deref());
    for (command, _) in &mut summary.try_next {
        if let Some(arguments) = command.strip_prefix("lateen ") {
            *command = format!("{own} {arguments}");
        }
    }
    output::text(&describe(&summary, Style::stdout()))
}

/// How a shell can call this program: by its name where that finds it, else by its path.
fn own_command(executable: &Path, path: Option<&OsStr>) -> String {
    let found = path.and_then(|path| {
        let candidates = std::env::split_paths(path).map(|folder| folder.join("lateen"));
        candidates.into_iter().find_map(|candidate| candidate.canonicalize().ok())
    });
    if found.is_some_and(|found| executable.canonicalize().is_ok_and(|own| own == found)) {
        "lateen".to_owned()
    } else {
        shell_word(&executable.to_string_lossy())
    }
}

/// Removes the cluster.
///
/// # Errors
/// What could not be removed.
pub(crate) async fn down(state: &Path, keep: bool) -> Result<()> {
    let options = DownOptions { state: state.to_owned(), keep };
    let mut lines = ProgressLines::start();
    let result = lateen_local::down(&options, &mut |progress| lines.show(&progress)).await;
    lines.end();
    let summary = result.map_err(advise)?;
    let mut said: String = summary.removed.iter().map(|leftover| format!("removed {leftover}\n")).collect();
    said.push_str(match (summary.was_running, keep) {
        (true, true) => "The cluster is down; its objects are kept for the next lateen up.",
        (true, false) => "The cluster is down; nothing is left behind.",
        (false, _) if summary.removed.is_empty() => "No cluster was running.",
        (false, _) => "What a crash had left behind is removed.",
    });
    said.push('\n');
    output::text(&said)
}

/// Prints the line to put into a shell, or the file itself.
///
/// # Errors
/// When no cluster is running.
pub(crate) fn kubeconfig(state: &Path, raw: bool) -> Result<()> {
    let file = lateen_local::kubeconfig(state).map_err(advise)?;
    if raw {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        output::text(&text)
    } else {
        output::text(&format!("{}\n", export_line(&file)))
    }
}

fn export_line(file: &Path) -> String {
    format!("export KUBECONFIG={}", shell_word(&file.to_string_lossy()))
}

/// Quoted only where a shell would see more than one plain word.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn describe(summary: &UpSummary, style: Style) -> String {
    let mut out = String::new();
    let took = summary.took.as_secs_f64();
    out += &match summary.already_running {
        true => "\nThe mesh is running already.\n".to_owned(),
        false => format!("\n{} in {took:.1} s.\n", style.good("The mesh is up")),
    };
    if let Some(gateway) = summary.gateway {
        out += &format!("\n  Gateway      {}\n", style.strong(&format!("http://{gateway}/")));
    }
    out += &format!("  Kubeconfig   {}\n", style.strong(&export_line(&summary.kubeconfig)));
    if !summary.try_next.is_empty() {
        out += "\nTry:\n";
    }
    let width = summary.try_next.iter().map(|(command, _)| command.chars().count()).max().unwrap_or(0);
    for (command, about) in &summary.try_next {
        let padding = " ".repeat(width - command.chars().count());
        out += &format!("  {}{padding}   {about}\n", style.strong(command));
    }
    out
}

/// The library's sentences carry their remedy; the common case gets the command as its own line.
fn advise(error: LifecycleError) -> anyhow::Error {
    match error {
        LifecycleError::NotRunning { state } => {
            Failure::new(format!("No cluster is running from {}.", state.display()), "lateen up").into()
        }
        other => other.into(),
    }
}

/// One line for each step on standard error; on a terminal a step that takes time has a spinner.
struct ProgressLines {
    style: Style,
    terminal: bool,
    spinner: Option<Spinner>,
}

impl ProgressLines {
    fn start() -> Self {
        Self { style: Style::stderr(), terminal: std::io::stderr().is_terminal(), spinner: None }
    }

    fn show(&mut self, progress: &Progress) {
        match progress {
            Progress::Begun(what) if self.terminal => {
                self.end();
                self.spinner = Some(Spinner::start(what.clone()));
            }
            Progress::Begun(what) => eprintln!("... {what}"),
            Progress::Done(what, took) => {
                self.end();
                eprintln!("{} {what} ({:.1} s)", self.style.good("ok"), took.as_secs_f64());
            }
            Progress::Note(note) => {
                self.end();
                eprintln!("{} {note}", self.style.warn("note:"));
            }
        }
    }

    fn end(&mut self) {
        self.spinner = None;
    }
}

/// Turns until dropped, then leaves an empty line.
struct Spinner {
    stop: Arc<AtomicBool>,
    task: Option<std::thread::JoinHandle<()>>,
}

const TURN: Duration = Duration::from_millis(100);

impl Spinner {
    fn start(what: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = std::thread::spawn(move || {
            for frame in ['|', '/', '-', '\\'].into_iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                eprint!("\r{frame} {what} ");
                // A terminal that has gone away needs no spinner.
                let _ = std::io::stderr().flush();
                std::thread::park_timeout(TURN);
            }
            eprint!("\r\x1b[K");
        });
        Self { stop, task: Some(task) }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(task) = self.task.take() {
            task.thread().unpark();
            // It only prints; if it panicked there is nothing to undo.
            let _ = task.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_ends_with_address_kubeconfig_and_three_things_to_try() {
        let summary = UpSummary {
            already_running: false,
            gateway: Some([10, 97, 0, 1].into()),
            kubeconfig: "/var/lib/lateen/kubeconfig".into(),
            took: Duration::from_millis(3210),
            sample: true,
            try_next: vec![
                ("curl http://10.97.0.1/".into(), "the customers page".into()),
                ("kubectl get pods".into(), "the sample".into()),
                ("lateen proxy-status".into(), "the proxies".into()),
            ],
        };
        let text = describe(&summary, Style::stdout());
        assert!(text.contains("in 3.2 s"), "{text}");
        assert!(text.contains("http://10.97.0.1/\n"), "{text}");
        assert!(text.contains("export KUBECONFIG=/var/lib/lateen/kubeconfig\n"), "{text}");
        assert!(text.contains("  kubectl get pods         the sample\n"), "{text}");
    }

    #[test]
    fn commands_to_try_work_where_the_program_is_not_on_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let (program, other) = (folder.path().join("lateen"), folder.path().join("other"));
        std::fs::create_dir(&other).unwrap();
        std::fs::write(&program, "").unwrap();
        let path = |folders: &[&Path]| std::env::join_paths(folders).unwrap();
        assert_eq!(own_command(&program, Some(&path(&[&other, folder.path()]))), "lateen");
        assert_eq!(own_command(&program, Some(&path(&[&other]))), program.to_string_lossy());
        assert_eq!(own_command(&program, None), program.to_string_lossy());
        std::fs::write(other.join("lateen"), "").unwrap();
        assert_eq!(own_command(&program, Some(&path(&[&other, folder.path()]))), program.to_string_lossy());
    }

    #[test]
    fn the_export_line_survives_a_shell() {
        assert_eq!(export_line(Path::new("/a b/it's")), "export KUBECONFIG='/a b/it'\\''s'");
    }
}
