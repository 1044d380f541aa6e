//! Access logs: lines are gathered per worker and written by one thread, so that a slow disk never slows a request.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use ahash::AHashMap;
use lateen_ir::LogSink;

/// Batches in flight to the writer; with [`BATCH_BYTES`] each this bounds the memory.
const MOST_BATCHES: usize = 256;

/// A worker hands over what it gathered when it has this much; otherwise a timer does.
const BATCH_BYTES: usize = 16 * 1024;

type Batch = (LogSink, Vec<u8>);

/// Sends batches to the writer thread. Cloned for each worker.
#[derive(Clone)]
pub(crate) struct LogWriter {
    batches: SyncSender<Batch>,
    dropped: Arc<AtomicU64>,
}

impl LogWriter {
    /// Starts the writer thread; it ends when the last clone is dropped.
    pub(crate) fn start() -> io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (batches, work) = sync_channel(MOST_BATCHES);
        let thread = std::thread::Builder::new().name("lateen-log".into()).spawn(move || write_all(&work))?;
        Ok((Self { batches, dropped: Arc::default() }, thread))
    }

    /// Bytes of log lost because the writer could not keep up.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn send(&self, batch: Batch) {
        let size = batch.1.len() as u64;
        if self.batches.try_send(batch).is_err() {
            self.dropped.fetch_add(size, Relaxed);
        }
    }
}

fn write_all(work: &Receiver<Batch>) {
    let mut files: AHashMap<Arc<str>, File> = AHashMap::new();
    while let Ok((sink, text)) = work.recv() {
        let result = match &sink {
            LogSink::Stdout => io::stdout().lock().write_all(&text).and_then(|()| io::stdout().flush()),
            LogSink::Stderr => io::stderr().lock().write_all(&text),
            LogSink::File(path) => {
                if !files.contains_key(path) {
                    // When it can't be had, it is tried anew with the next lines.
                    files.extend(open(path).map(|file| (path.clone(), file)));
                }
                files.get_mut(path).map_or(Ok(()), |file| file.write_all(&text))
            }
        };
        if let Err(error) = result {
            tracing::warn!(?sink, %error, "access log: cannot write; lines are lost");
            if let LogSink::File(path) = sink {
                files.remove(&path); // tried anew with the next line
            }
        }
    }
}

fn open(path: &str) -> Option<File> {
    match OpenOptions::new().create(true).append(true).open(path) {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!(path, %error, "access log: cannot open; its lines are lost");
            None
        }
    }
}

/// One worker's lines that are not yet with the writer.
pub(crate) struct LogBuffer {
    writer: LogWriter,
    gathered: RefCell<Vec<Batch>>,
    flush_planned: Cell<bool>,
}

impl LogBuffer {
    pub(crate) fn new(writer: LogWriter) -> Self {
        Self { writer, gathered: RefCell::default(), flush_planned: Cell::new(false) }
    }

    /// Adds a line. True when the caller must plan a [`Self::flush`] soon.
    pub(crate) fn add(&self, sink: &LogSink, line: &str) -> bool {
        let mut gathered = self.gathered.borrow_mut();
        let index = match gathered.iter().position(|(known, _)| known == sink) {
            Some(index) => index,
            None => {
                gathered.push((sink.clone(), Vec::new()));
                gathered.len() - 1
            }
        };
        let text = &mut gathered[index].1;
        text.extend_from_slice(line.as_bytes());
        if text.len() >= BATCH_BYTES {
            self.writer.send((sink.clone(), std::mem::take(text)));
        }
        !self.flush_planned.replace(true)
    }

    /// Hands everything to the writer.
    pub(crate) fn flush(&self) {
        self.flush_planned.set(false);
        for (sink, text) in self.gathered.take() {
            if !text.is_empty() {
                self.writer.send((sink, text));
            }
        }
    }
}

impl Drop for LogBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_reach_the_file_in_order_and_survive_the_end() {
        let dir = std::env::temp_dir().join(format!("lateen-log-{}", fastrand::u64(..)));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("access.log");
        let sink = LogSink::File(path.to_str().unwrap().into());
        let (writer, thread) = LogWriter::start().unwrap();
        let buffer = LogBuffer::new(writer.clone());
        assert!(buffer.add(&sink, "one\n"), "the first line asks for a flush");
        assert!(!buffer.add(&sink, "two\n"));
        buffer.flush();
        assert!(buffer.add(&sink, "three\n"));
        drop(buffer);
        assert_eq!(writer.dropped(), 0);
        drop(writer);
        thread.join().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
