//! Work split over a few threads, in runs; results never depend on the split.

/// A pointer that threads may share; each writes its own part only.
#[derive(Clone, Copy)]
pub struct Shared<T>(pub *mut T);
unsafe impl<T> Send for Shared<T> {}
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// By method, so that a closure captures the wrapper and not the bare pointer.
    pub fn get(&self) -> *mut T {
        self.0
    }
}

/// Calls `work(begin, end)` for runs that cover 0..items, on up to `threads` threads.
pub fn split(items: usize, threads: usize, work: impl Fn(usize, usize) + Sync) {
    let threads = threads.clamp(1, items.max(1));
    if threads == 1 {
        return work(0, items);
    }
    let size = items.div_ceil(threads);
    std::thread::scope(|scope| {
        for begin in (size..items).step_by(size) {
            let work = &work;
            scope.spawn(move || work(begin, (begin + size).min(items)));
        }
        work(0, size.min(items));
    });
}
