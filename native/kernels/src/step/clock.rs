//! Which part of the layers the time goes to.

use crate::threads::Shared;
use std::cell::Cell;
use std::time::Instant;

/// Parts of a layer, in the order of `model/decoder.py`.
#[derive(Clone, Copy)]
pub enum Part {
    /// Around the sublayers: mixing the residual streams.
    Streams,
    /// Dense matrices of the attention, norms and rotations.
    Project,
    Compress,
    /// The indexer's queries, its scan and the choice.
    Select,
    Attend,
    Experts,
}

/// Adds up seconds by part.
pub struct Clock {
    seconds: Shared<f64>,
    since: Cell<Instant>,
}

impl Clock {
    /// None where nobody asks for the seconds.
    pub fn new(seconds: *mut f64) -> Option<Clock> {
        let since = Cell::new(Instant::now());
        (!seconds.is_null()).then_some(Clock { seconds: Shared(seconds), since })
    }

    /// What has passed since the last call belongs to `part`.
    pub fn lap(&self, part: Part) {
        let now = Instant::now();
        let spent = now - self.since.replace(now);
        unsafe { *self.seconds.get().add(part as usize) += spent.as_secs_f64() };
    }
}
