//! Container logs on disk: one time-stamped line each, rotated, readable while they are written.
//!
//! A stored line is `TIME F TEXT`, or `TIME P TEXT` for a piece of a line that goes on (as the CRI's log format).

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use lateen_podstreams::{LogOptions, PodError};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    sync::{mpsc, watch},
};

use crate::RuntimeError;

/// A file grows to this size, then it becomes the older of two.
const MOST_BYTES: u64 = 10 * 1024 * 1024;
/// Longer lines are stored in pieces.
const LONGEST_LINE: usize = 16 * 1024;
/// Chunks a reader holds before it reads no further.
const QUEUE: usize = 16;

/// The log of one instance of a container.
#[derive(Debug)]
pub(crate) struct ContainerLog {
    path: PathBuf,
    most_bytes: u64,
    file: Mutex<Current>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug)]
struct Current {
    file: File,
    size: u64,
}

/// What readers wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    written: u64,
    rotations: u64,
    ended: bool,
}

impl ContainerLog {
    /// Starts the log of instance `number` (the count of restarts) and removes those before its predecessor.
    pub(crate) fn create(directory: &Path, number: u32) -> Result<Arc<Self>, RuntimeError> {
        Self::create_with(directory, number, MOST_BYTES)
    }

    fn create_with(directory: &Path, number: u32, most_bytes: u64) -> Result<Arc<Self>, RuntimeError> {
        fs::create_dir_all(directory).map_err(RuntimeError::file(directory))?;
        if let Some(old) = number.checked_sub(2) {
            for path in [directory.join(format!("{old}.log")), directory.join(format!("{old}.log.1"))] {
                // Usually there is no second file.
                let _ = fs::remove_file(path);
            }
        }
        let path = directory.join(format!("{number}.log"));
        let file = File::create(&path).map_err(RuntimeError::file(&path))?;
        let (progress, _) = watch::channel(Progress { written: 0, rotations: 0, ended: false });
        Ok(Arc::new(Self { path, most_bytes, file: Mutex::new(Current { file, size: 0 }), progress }))
    }

    /// Copies one of the container's streams until it ends.
    pub(crate) async fn copy(&self, stream: impl AsyncRead + Unpin) {
        let mut reader = BufReader::with_capacity(LONGEST_LINE, stream);
        loop {
            let length = match reader.fill_buf().await {
                Ok([]) | Err(_) => return,
                Ok(buffer) => {
                    let end = buffer.iter().position(|byte| *byte == b'\n');
                    let text = &buffer[..end.unwrap_or(buffer.len())];
                    self.append(text, end.is_some());
                    end.map_or(buffer.len(), |end| end + 1)
                }
            };
            reader.consume(length);
        }
    }

    /// Marks the end; followers stop there.
    pub(crate) fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    fn append(&self, text: &[u8], whole: bool) {
        let time = Timestamp::now();
        let mut line = format!("{time:.9} {} ", if whole { 'F' } else { 'P' }).into_bytes();
        line.extend_from_slice(text);
        line.push(b'\n');
        let mut current = self.file.lock();
        let mut rotated = 0;
        if current.size + line.len() as u64 > self.most_bytes && current.size > 0 {
            match self.rotate() {
                Ok(file) => {
                    *current = Current { file, size: 0 };
                    rotated = 1;
                }
                Err(error) => tracing::warn!(%error, "rotating a container's log"),
            }
        }
        // A full disk must not stop the container.
        match current.file.write_all(&line) {
            Ok(()) => current.size += line.len() as u64,
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "writing a container's log"),
        }
        drop(current);
        self.progress.send_modify(|progress| {
            progress.written += 1;
            progress.rotations += rotated;
        });
    }

    /// The last line, for messages.
    pub(crate) fn last_line(&self) -> String {
        String::from_utf8_lossy(&self.last_lines(1)).trim().to_owned()
    }

    /// The last lines of the current file.
    pub(crate) fn last_lines(&self, lines: usize) -> Vec<u8> {
        let stored = fs::read(&self.path).unwrap_or_default();
        let tail = LogOptions { tail_lines: Some(lines), ..LogOptions::default() };
        View::new(&tail).past(&stored)
    }

    fn rotate(&self) -> std::io::Result<File> {
        fs::rename(&self.path, self.older())?;
        OpenOptions::new().create(true).truncate(true).write(true).open(&self.path)
    }

    fn older(&self) -> PathBuf {
        self.path.with_extension("log.1")
    }

    /// Both files, the older first, as they are at one moment.
    fn open(&self) -> std::io::Result<(Option<File>, File, Progress)> {
        let current = self.file.lock();
        let older = File::open(self.older()).ok();
        let file = File::open(&self.path)?;
        let progress = *self.progress.borrow();
        drop(current);
        Ok((older, file, progress))
    }

    /// The log as asked for, in chunks.
    pub(crate) fn read(self: Arc<Self>, options: LogOptions) -> BoxStream<'static, Result<Bytes, PodError>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::task::spawn(async move {
            if let Err(error) = self.send(options, &sender).await {
                // The reader may have gone.
                let _ = sender
                    .send(Err(PodError::Internal(format!("reading {}: {error}", self.path.display()))))
                    .await;
            }
        });
        Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        }))
    }

    async fn send(
        &self,
        options: LogOptions,
        sender: &mpsc::Sender<Result<Bytes, PodError>>,
    ) -> std::io::Result<()> {
        let mut progress = self.progress.subscribe();
        let (older, mut file, mut seen) = self.open()?;
        let mut view = View::new(&options);
        let mut past = Vec::new();
        if let Some(mut older) = older {
            older.read_to_end(&mut past)?;
        }
        file.read_to_end(&mut past)?;
        let mut output = view.past(&past);
        drop(past);
        loop {
            if !output.is_empty() && sender.send(Ok(Bytes::from(std::mem::take(&mut output)))).await.is_err()
            {
                return Ok(());
            }
            if view.finished() || (seen.ended && *progress.borrow() == seen) || !options.follow {
                return Ok(());
            }
            tokio::select! {
                changed = progress.wait_for(|now| *now != seen) => { if changed.is_err() { return Ok(()); } }
                () = sender.closed() => return Ok(()),
            }
            let mut fresh = Vec::new();
            let rotations = progress.borrow().rotations;
            // What is left of the file that was current, then the one or two files since.
            file.read_to_end(&mut fresh)?;
            let now = *progress.borrow();
            if rotations != seen.rotations {
                let (older, current, now) = self.open()?;
                if let Some(mut older) = older.filter(|_| now.rotations > seen.rotations + 1) {
                    older.read_to_end(&mut fresh)?;
                }
                file = current;
                file.read_to_end(&mut fresh)?;
                seen = now;
            } else {
                seen = Progress { rotations, ..now };
            }
            output = view.lines(&fresh);
        }
    }
}

/// Turns stored lines into what the client asked for.
struct View {
    timestamps: bool,
    since: Option<Timestamp>,
    tail: Option<usize>,
    /// Bytes still allowed.
    room: usize,
    /// The last piece was not the end of its line.
    inside_line: bool,
    /// A stored line that wasn't complete yet.
    rest: Vec<u8>,
}

impl View {
    fn new(options: &LogOptions) -> Self {
        let since = options.since_seconds.and_then(|seconds| {
            let age = SignedDuration::from_secs(i64::try_from(seconds).ok()?);
            Timestamp::now().checked_sub(age).ok()
        });
        Self {
            timestamps: options.timestamps,
            since,
            tail: options.tail_lines,
            room: options.limit_bytes.unwrap_or(usize::MAX),
            inside_line: false,
            rest: Vec::new(),
        }
    }

    fn finished(&self) -> bool {
        self.room == 0
    }

    /// What was there at the beginning, of which the tail is wanted.
    fn past(&mut self, stored: &[u8]) -> Vec<u8> {
        let from = match self.tail {
            None => 0,
            Some(lines) => tail_start(stored, lines),
        };
        self.lines(&stored[from..])
    }

    fn lines(&mut self, stored: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(stored);
        let mut left = all.as_slice();
        while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
            self.line(&left[..end], &mut output);
            left = &left[end + 1..];
        }
        self.rest = left.to_vec();
        output.truncate(self.room);
        self.room -= output.len();
        output
    }

    fn line(&mut self, stored: &[u8], output: &mut Vec<u8>) {
        let mut parts = stored.splitn(3, |byte| *byte == b' ');
        let (Some(time), Some(kind), Some(text)) = (parts.next(), parts.next(), parts.next()) else { return };
        if let Some(since) = self.since {
            let time: Option<Timestamp> = std::str::from_utf8(time).ok().and_then(|time| time.parse().ok());
            if time.is_none_or(|time| time < since) {
                return;
            }
        }
        if self.timestamps && !self.inside_line {
            output.extend_from_slice(time);
            output.push(b' ');
        }
        output.extend_from_slice(text);
        self.inside_line = kind == b"P";
        if !self.inside_line {
            output.push(b'\n');
        }
    }
}

/// Where the last `lines` whole lines begin.
fn tail_start(stored: &[u8], lines: usize) -> usize {
    let mut starts = Vec::new();
    let mut at = 0;
    let mut inside = false;
    for line in stored.split_inclusive(|byte| *byte == b'\n') {
        if !inside {
            starts.push(at);
        }
        inside = line.splitn(3, |byte| *byte == b' ').nth(1) == Some(b"P");
        at += line.len();
    }
    match starts.len().checked_sub(lines) {
        Some(first) => starts.get(first).copied().unwrap_or(stored.len()),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("lateen-log-{name}-{}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn text(log: &Arc<ContainerLog>, options: LogOptions) -> String {
        let chunks: Vec<_> = Arc::clone(log).read(options).collect().await;
        chunks.into_iter().map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()).collect()
    }

    #[tokio::test]
    async fn options() {
        let folder = Folder::new("options");
        let log = ContainerLog::create(&folder.0, 0).unwrap();
        log.copy("one\ntwo\n\nfour\nunfinished".as_bytes()).await;
        log.end();
        let all = LogOptions::default();
        assert_eq!(text(&log, all.clone()).await, "one\ntwo\n\nfour\nunfinished");
        for (tail, expected) in
            [(0, ""), (1, "unfinished"), (2, "four\nunfinished"), (9, "one\ntwo\n\nfour\nunfinished")]
        {
            assert_eq!(text(&log, LogOptions { tail_lines: Some(tail), ..all.clone() }).await, expected);
        }
        assert_eq!(text(&log, LogOptions { limit_bytes: Some(5), ..all.clone() }).await, "one\nt");
        assert_eq!(text(&log, LogOptions { since_seconds: Some(3600), ..all.clone() }).await.len(), 24);
        let stamped = text(&log, LogOptions { timestamps: true, tail_lines: Some(2), ..all }).await;
        let time = stamped.split(' ').next().unwrap();
        assert!(time.ends_with('Z') && time.parse::<Timestamp>().is_ok(), "{stamped}");
        assert!(stamped.starts_with(&format!("{time} four\n")), "{stamped}");
    }

    #[tokio::test]
    async fn long_lines_stay_one_line() {
        let folder = Folder::new("long");
        let log = ContainerLog::create(&folder.0, 0).unwrap();
        let long = "x".repeat(3 * LONGEST_LINE + 5);
        log.copy(format!("{long}\nend\n").as_bytes()).await;
        log.end();
        assert_eq!(text(&log, LogOptions::default()).await, format!("{long}\nend\n"));
        let tail = LogOptions { tail_lines: Some(2), ..LogOptions::default() };
        assert_eq!(text(&log, tail).await, format!("{long}\nend\n"));
    }

    #[tokio::test]
    async fn followers_see_every_line_across_rotations() {
        let folder = Folder::new("follow");
        let log = ContainerLog::create_with(&folder.0, 0, 4000).unwrap();
        log.append(b"line 0", true);
        let mut stream = Arc::clone(&log).read(LogOptions { follow: true, ..LogOptions::default() });
        let mut seen = String::new();
        for number in 1..300 {
            // Wait until the follower has caught up, so that nothing may be lost.
            while !seen.ends_with(&format!("line {}\n", number - 1)) {
                seen.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
            }
            log.append(format!("line {number}").as_bytes(), true);
        }
        log.end();
        while let Some(chunk) = stream.next().await {
            seen.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
        let expected: String = (0..300).map(|number| format!("line {number}\n")).collect();
        assert_eq!(seen, expected);
        let size = |name: &str| fs::metadata(folder.0.join(name)).unwrap().len();
        assert!(size("0.log") <= 4000 && size("0.log.1") <= 4000);
    }

    #[test]
    fn keeps_the_previous_instance_only() {
        let folder = Folder::new("previous");
        for number in 0..4 {
            ContainerLog::create(&folder.0, number).unwrap();
        }
        let mut names: Vec<_> = fs::read_dir(&folder.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["2.log", "3.log"]);
    }
}
