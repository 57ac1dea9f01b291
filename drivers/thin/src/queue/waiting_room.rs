//! Where writes wait that found the pool full, if the pool is told to let them
//! ([`OnFull::Wait`]).
//!
//! A worker puts a write here when the engine refuses it for lack of space. One thread tries the first of each class
//! again whenever space may have come, and gives up who has waited too long. Reserved volumes go before others.
//!
//! Invariants
//! - P1: the order in which writes of a class come in is the order in which they get space.
//! - P2: every write that comes in is delivered once: done, refused at its deadline, or refused because its queue or the
//!   pool goes.
//!
//! Failure: when the thread cannot be started, the write is refused as if the pool let nobody wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use quarry_contract::IoError;

use super::inbox::Inbox;
use super::workers::PendingRequest;
use crate::levels::SpaceClass;
use crate::locks::lock;
use crate::{OnFull, Pool};

/// How long the thread sleeps when nothing tells it anything; only a backstop.
const NAP: Duration = Duration::from_millis(500);

/// The writes that wait.
#[derive(Default)]
pub(super) struct WaitingRoom {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reserved: VecDeque<Waiting>,
    best_effort: VecDeque<Waiting>,
    /// Serves, as long as somebody waits.
    thread: Option<JoinHandle<()>>,
    is_served: bool,
    is_closing: bool,
}

struct Waiting {
    job: PendingRequest,
    ticket: u64,
    deadline: Instant,
}

const CLASSES: [SpaceClass; 2] = [SpaceClass::Reserved, SpaceClass::BestEffort];

impl State {
    fn of(&mut self, class: SpaceClass) -> &mut VecDeque<Waiting> {
        match class {
            SpaceClass::Reserved => &mut self.reserved,
            SpaceClass::BestEffort => &mut self.best_effort,
        }
    }

    fn is_empty(&self) -> bool {
        self.reserved.is_empty() && self.best_effort.is_empty()
    }
}

impl WaitingRoom {
    /// Takes a refused write in; gives it back when it may not wait.
    pub(super) fn admit(self: &Arc<Self>, job: PendingRequest) -> Result<(), PendingRequest> {
        let pool = Arc::clone(job.handle.pool());
        let OnFull::Wait(patience) = pool.on_full() else {
            return Err(job);
        };
        let class = job.handle.space_class();
        let mut state = lock(&self.state);
        if state.is_closing || job.inbox.is_closing() || pool.is_closed() || pool.stopped().is_some() {
            return Err(job);
        }
        if !state.is_served {
            let (room, served) = (Arc::clone(self), Arc::clone(&pool));
            let started = thread::Builder::new()
                .name("quarry-io-full".into())
                .spawn(move || room.serve(&served));
            match started {
                Ok(thread) => drop(state.thread.replace(thread)),
                Err(error) => {
                    tracing::warn!(%error, "no thread for writes that wait for space; refusing them");
                    return Err(job);
                }
            }
            state.is_served = true;
        }
        let deadline = Instant::now() + patience;
        let ticket = pool.waiters.join(class, deadline);
        state.of(class).push_back(Waiting {
            job,
            ticket,
            deadline,
        });
        Ok(())
    }

    /// Refuses the writes of a queue that goes; those of it that come later are not admitted.
    pub(super) fn dismiss(&self, inbox: &Arc<Inbox>) {
        let mut leaving = Vec::new();
        {
            let mut state = lock(&self.state);
            inbox.close();
            for class in CLASSES {
                let line = state.of(class);
                while let Some(place) = line.iter().position(|one| Arc::ptr_eq(&one.job.inbox, inbox)) {
                    let one = line.remove(place).expect("it was found there");
                    one.job.handle.pool().waiters.leave(class, one.ticket);
                    leaving.push(one);
                }
            }
        }
        for one in leaving {
            one.job.deliver(Err(IoError::NoSpace));
        }
    }

    /// Refuses all and ends the thread.
    pub(super) fn close(&self) {
        let thread = {
            let mut state = lock(&self.state);
            state.is_closing = true;
            for class in CLASSES {
                if let Some(one) = state.of(class).front() {
                    one.job.handle.pool().waiters.tell();
                }
            }
            state.thread.take()
        };
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of writes that wait for space panicked");
        }
    }

    /// Serves those who wait until nobody does.
    fn serve(&self, pool: &Arc<Pool>) {
        pool.waiters.set_server(Some(thread::current().id()));
        loop {
            let news = pool.waiters.news();
            for class in CLASSES {
                self.serve_class(pool, class);
            }
            {
                let mut state = lock(&self.state);
                if state.is_empty() {
                    state.is_served = false;
                    pool.waiters.set_server(None);
                    return;
                }
            }
            let patience = pool.waiters.until_first_deadline().unwrap_or(NAP);
            pool.waiters.wait_for_news(news, patience.min(NAP));
        }
    }

    /// Tries the first of a class, and those after it as long as they get on.
    fn serve_class(&self, pool: &Arc<Pool>, class: SpaceClass) {
        loop {
            // Taken out while it is tried, so that its queue can go meanwhile; in the line until then (H1).
            let Some(mut one) = lock(&self.state).of(class).pop_front() else {
                return;
            };
            let ended = lock(&self.state).is_closing || Instant::now() >= one.deadline;
            let result = match one.job.run() {
                Err(IoError::NoSpace) if !ended && !one.job.inbox.is_closing() => {
                    lock(&self.state).of(class).push_front(one);
                    return;
                }
                result => result,
            };
            pool.waiters.leave(class, one.ticket);
            one.job.deliver(result);
        }
    }
}
