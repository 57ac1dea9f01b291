//! Gives the space of what was deleted back, in the background. What a process leaves undone, the next goes on with.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use quarry_xfs::locks::lock;
use tracing::warn;

use crate::layout::folder_names;

/// The thread that empties a folder.
pub(crate) struct Trash {
    folder: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    has_work: bool,
    is_stopping: bool,
}

impl Trash {
    /// Starts the thread, which begins with what is there.
    pub(crate) fn start(folder: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        lock(&shared.state).has_work = true;
        let thread = {
            let (shared, folder) = (Arc::clone(&shared), folder.clone());
            std::thread::Builder::new()
                .name("quarry-trash".into())
                .spawn(move || work(&shared, &folder))?
        };
        Ok(Self {
            folder,
            shared,
            thread: Some(thread),
        })
    }

    /// Says that there is something new.
    pub(crate) fn wake(&self) {
        lock(&self.shared.state).has_work = true;
        self.shared.changed.notify_all();
    }

    /// Returns what is on its way back, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let names = folder_names(&self.folder).unwrap_or_default();
        let image = |name: String| fs::metadata(self.folder.join(name).join("image")).ok();
        names
            .into_iter()
            .filter_map(image)
            .map(|image| image.blocks() * 512)
            .sum()
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        lock(&self.shared.state).is_stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported there.
            drop(thread.join());
        }
    }
}

fn work(shared: &Shared, folder: &Path) {
    loop {
        let mut state = lock(&shared.state);
        while !state.has_work && !state.is_stopping {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_stopping {
            return;
        }
        state.has_work = false;
        drop(state);
        let names = folder_names(folder).unwrap_or_default();
        for name in names {
            if lock(&shared.state).is_stopping {
                return;
            }
            if let Err(error) = fs::remove_dir_all(folder.join(&name)) {
                warn!(path = %folder.join(name).display(), %error, "deleted, and its space stays taken");
            }
        }
    }
}
