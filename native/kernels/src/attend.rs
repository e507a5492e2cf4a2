//! Attention of each query over its window and its blocks; see `kernels/attend.py`.

use crate::heads::{attend_query, Segments};
use crate::keys::{Keys, Rows, BF16, FP32};
use crate::threads::{split, Shared};

/// Inputs of one call; shapes as in the reference, all contiguous but for the given strides.
#[repr(C)]
pub struct AttendArgs {
    pub q: *const f32,
    pub sinks: *const f32,
    pub ring: *const u8,
    /// The call's own latents as they will be stored, plain: fp32, or bf16 as the rest.
    pub kv: *const u8,
    pub starts: *const i64,
    pub blocks: *const u8,
    pub limits: *const i64,
    pub picks: *const i32,
    pub out: *mut f32,
    pub batch: usize,
    pub tokens: usize,
    pub heads: usize,
    pub width: usize,
    pub window: usize,
    pub topk: usize,
    pub kind: usize,
    pub rope: usize,
    pub page: usize,
    pub starts_stride: usize,
    pub limits_stride: usize,
    /// Bytes from one row of the batch to the next; so for the blocks.
    pub ring_stride: usize,
    pub blocks_stride: usize,
    pub threads: usize,
    pub kv_kind: usize,
    /// The model computes in bf16: queries are rounded to it where all keys are.
    pub narrow: bool,
}

unsafe impl Sync for AttendArgs {}

/// What one thread needs beside its inputs, kept between calls.
#[derive(Default)]
pub struct Work {
    queries: Vec<f32>,
    scores: Vec<f32>,
    near: Rows,
    far: Rows,
}

pub unsafe fn attend(args: &AttendArgs) {
    let out = Shared(args.out);
    for row in 0..args.batch {
        split(args.tokens, args.threads, |begin, end| {
            unsafe { attend_run(args, row, begin, end, &mut Work::default(), out.get()) };
        });
    }
}

/// As `attend`, for queries begin..end of one row, which share their window's rows.
pub unsafe fn attend_run(
    a: &AttendArgs,
    row: usize,
    begin: usize,
    end: usize,
    work: &mut Work,
    out: *mut f32,
) {
    let start = *a.starts.add(row * a.starts_stride) as usize;
    let (kind, width, rope) = (a.kind, a.width, a.rope);
    let ring = Keys { data: a.ring, kind, width, rope, page: a.window }.row(row, a.ring_stride);
    let kv = Keys { data: a.kv, kind: a.kv_kind, width, rope, page: 1 };
    let kv = kv.row(row, a.tokens * kv.code_bytes());
    let blocks = Keys { data: a.blocks, kind, width, rope, page: a.page };
    let blocks = blocks.row(row, a.blocks_stride);
    let first = (start + begin + 1).saturating_sub(a.window);
    let near_kind = if a.kv_kind == kind { kind } else { FP32 };
    work.near.fill(start + end - first, width, near_kind, |i| {
        let position = first + i;
        if position < start { ring.at(position % a.window) } else { kv.at(position - start) }
    });
    let limit = |t: usize| match a.limits.is_null() {
        true => 0,
        false => *a.limits.add(row * a.limits_stride + t) as usize,
    };
    let dense = a.picks.is_null();
    if dense {
        let most = (begin..end).map(limit).max().unwrap_or(0);
        work.far.fill(most, width, kind, |i| blocks.at(i));
    }
    for t in begin..end {
        let position = start + t;
        let oldest = (position + 1).saturating_sub(a.window);
        let mut count = limit(t);
        if !dense {
            let picks = a.picks.add((row * a.tokens + t) * a.topk);
            count = (0..a.topk).take_while(|&i| *picks.add(i) >= 0).count();
            work.far.fill(count, width, kind, |i| blocks.at(*picks.add(i) as usize));
        }
        let keys = Segments {
            near: &work.near.pointers[oldest - first..=position - first],
            far: &work.far.pointers[..count],
        };
        let at = (row * a.tokens + t) * a.heads * width;
        let (q, out) = (a.q.add(at), out.add(at));
        let run = match (work.near.kind, work.far.kind, a.narrow) {
            (BF16, BF16, true) => attend_query::<BF16, BF16, true>,
            (BF16, BF16, false) => attend_query::<BF16, BF16, false>,
            (_, BF16, _) => attend_query::<FP32, BF16, false>,
            _ => attend_query::<FP32, FP32, false>,
        };
        let buffers = (&mut work.scores, &mut work.queries);
        run(q, a.sinks, &keys, buffers, out, a.heads, width);
    }
}
