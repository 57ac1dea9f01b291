//! The journal of mutating calls, and the one way in which all of them run.
//!
//! [`Resources::mutate`] gives a call its task (R3), its locks, the answer it was given earlier under the same
//! request id, and an [`Intent`] to open before its first effect (R1). What the call returns is written with the
//! end of the operation in one batch: the object's record and the closed intent are never apart.
//!
//! Failure: when that batch cannot be written, or a driver has failed in a way that leaves open whether its
//! effect is there, the intent stays open, and the next start settles it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use quarry_contract::ErrorKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{info, warn};
use uuid::Uuid;

use super::error::{Object, ObjectKind, ResourceError};
use super::locks::LockKey;
use super::{Mutation, Page, Resources};
use crate::catalog::record::{Moment, OperationId, OperationRecord, Progress, Request};
use crate::catalog::{Catalog, Change};

/// One call on its way: its record in the journal, written at [`Intent::open`].
pub(super) struct Intent {
    catalog: Catalog,
    id: OperationId,
    record: OperationRecord,
    is_open: bool,
}

impl Intent {
    fn new(catalog: &Catalog, request: Request, request_id: Option<String>) -> Self {
        let record = OperationRecord {
            request,
            request_id,
            progress: Progress::Running,
            created: Moment::now(),
            ended: None,
            recovered: false,
        };
        Self {
            catalog: catalog.clone(),
            id: OperationId(Uuid::now_v7()),
            record,
            is_open: false,
        }
    }

    /// Takes up an intent that the process before has left open.
    pub(super) fn left_open(catalog: &Catalog, id: OperationId, record: OperationRecord) -> Self {
        let record = OperationRecord {
            recovered: true,
            ..record
        };
        Self {
            catalog: catalog.clone(),
            id,
            record,
            is_open: true,
        }
    }

    /// Makes the intent durable. Nothing may have an effect before this has returned (R1).
    pub(super) async fn open(&mut self) -> Result<(), ResourceError> {
        if !self.is_open {
            self.catalog
                .commit(vec![Change::PutOperation(self.id, self.record.clone())])
                .await?;
            self.is_open = true;
        }
        Ok(())
    }

    /// Closes the intent with what the call has changed in the catalog, in one batch.
    pub(super) async fn succeed<A: Serialize + Sync>(
        mut self,
        changes: Vec<Change>,
        answer: &A,
    ) -> Result<(), ResourceError> {
        // A call that found its end state and has no name to be remembered by leaves no trace.
        if !self.is_open && changes.is_empty() && self.record.request_id.is_none() {
            return Ok(());
        }
        let answer = serde_json::to_value(answer).map_err(|error| ResourceError::Internal {
            detail: format!("encoding an answer: {error}"),
        })?;
        self.record.progress = Progress::Succeeded { answer };
        self.close(changes).await
    }

    /// Closes the intent of a call that has changed nothing.
    pub(super) async fn fail(mut self, error: &ResourceError) -> Result<(), ResourceError> {
        if !self.is_open {
            return Ok(());
        }
        self.record.progress = Progress::Failed {
            code: error.code().to_owned(),
            message: error.to_string(),
        };
        self.close(Vec::new()).await
    }

    async fn close(mut self, mut changes: Vec<Change>) -> Result<(), ResourceError> {
        self.record.ended = Some(Moment::now());
        changes.push(Change::PutOperation(self.id, self.record));
        Ok(self.catalog.commit(changes).await?)
    }
}

/// The body of a mutating call, running.
pub(super) type Running<'a, A> = Pin<Box<dyn Future<Output = Result<Done<A>, ResourceError>> + Send + 'a>>;

/// What a mutating call comes to: the answer, and what it changes in the catalog.
pub(super) struct Done<A> {
    pub(super) answer: A,
    pub(super) changes: Vec<Change>,
}

impl<A> Done<A> {
    /// The end state was there already.
    pub(super) fn unchanged(answer: A) -> Self {
        Self {
            answer,
            changes: Vec::new(),
        }
    }

    /// The end state has been reached; these records change with it.
    pub(super) fn changed(answer: A, changes: Vec<Change>) -> Self {
        Self { answer, changes }
    }
}

/// Tells whether a driver's failure leaves open what has happened, for the calls that recovery settles by
/// looking. What recovery would do again (a delete, a detach) is closed as failed: its caller has been told so,
/// and may have made other plans by the next start.
fn is_uncertain(request: &Request, error: &ResourceError) -> bool {
    let is_looked_at = matches!(
        request,
        Request::CreateVolume { .. }
            | Request::CreateSnapshots { .. }
            | Request::ExtendVolume { .. }
            | Request::CreateShare { .. }
            | Request::AdoptShare { .. }
            | Request::CreateShareSnapshots { .. }
            | Request::ResizeShare { .. }
    );
    let ResourceError::Driver(error) = error else {
        return false;
    };
    is_looked_at
        && matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Internal
        )
}

impl Resources {
    /// Runs a mutating call (see the module's documentation).
    pub(super) async fn mutate<A, F>(
        self: &Arc<Self>,
        locks: Vec<LockKey>,
        request: Request,
        mutation: Mutation,
        call: F,
    ) -> Result<A, ResourceError>
    where
        A: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: for<'a> FnOnce(&'a Self, &'a mut Intent) -> Running<'a, A> + Send + 'static,
    {
        if self.is_stopping.load(Ordering::SeqCst) {
            return Err(ResourceError::ShuttingDown);
        }
        let this = Arc::clone(self);
        let task = self.running.spawn(async move {
            let _held = this.locks.take(locks).await?;
            if let Some(answer) = this.answered_before(&request, &mutation)? {
                return Ok(answer);
            }
            let mut intent = Intent::new(&this.catalog, request, mutation.request_id);
            let result = call(&this, &mut intent).await;
            this.settle(intent, result).await
        });
        task.await.map_err(|error| ResourceError::Internal {
            detail: format!("a call has panicked: {error}"),
        })?
    }

    /// Closes an intent as its call has ended.
    pub(super) async fn settle<A: Serialize + Sync>(
        &self,
        intent: Intent,
        result: Result<Done<A>, ResourceError>,
    ) -> Result<A, ResourceError> {
        let (id, target) = (intent.id, intent.record.request.target());
        match result {
            Ok(done) => {
                intent.succeed(done.changes, &done.answer).await?;
                info!(operation = %id, %target, "done");
                Ok(done.answer)
            }
            Err(error) => {
                info!(operation = %id, %target, code = error.code(), %error, "refused");
                if intent.is_open && is_uncertain(&intent.record.request, &error) {
                    warn!(operation = %id, %target, "what has become of the call is seen at the next start");
                    return Err(error);
                }
                if let Err(unclosed) = intent.fail(&error).await {
                    warn!(operation = %id, error = %unclosed, "the intent stays open until the next start");
                }
                Err(error)
            }
        }
    }

    /// Returns the answer that this call was given earlier under the same request id.
    fn answered_before<A: DeserializeOwned>(
        &self,
        request: &Request,
        mutation: &Mutation,
    ) -> Result<Option<A>, ResourceError> {
        let Some(name) = &mutation.request_id else {
            return Ok(None);
        };
        let Some((operation, record)) = self.catalog.request(name)? else {
            return Ok(None);
        };
        let reused = || ResourceError::RequestIdReused {
            request_id: name.clone(),
            operation,
        };
        if record.request != *request {
            return Err(reused());
        }
        match record.progress {
            Progress::Succeeded { answer } => {
                serde_json::from_value(answer)
                    .map(Some)
                    .map_err(|error| ResourceError::Internal {
                        detail: format!("the answer of operation {operation}: {error}"),
                    })
            }
            Progress::Running | Progress::Failed { .. } => Ok(None),
        }
    }

    /// Returns one operation of the journal.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn operation(&self, id: OperationId) -> Result<OperationRecord, ResourceError> {
        self.catalog
            .operation(id)?
            .ok_or_else(|| ResourceError::NotFound(Object::new(ObjectKind::Operation, id)))
    }

    /// Returns operations, oldest first.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn operations(
        &self,
        page: Page<OperationId>,
        wanted: impl Fn(&OperationRecord) -> bool,
    ) -> Result<Vec<(OperationId, OperationRecord)>, ResourceError> {
        Ok(self.catalog.operations(page.after, page.limit, wanted)?)
    }

    /// Forgets operations that ended more than 24 hours ago.
    ///
    /// # Errors
    /// When the catalog cannot be written.
    pub async fn forget_old_operations(&self) -> Result<u64, ResourceError> {
        Ok(self.catalog.forget_old_operations(Moment::now()).await?)
    }
}
