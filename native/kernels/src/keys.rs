//! Rows of keys in whatever form the cache keeps them, read as fp32.

use crate::simd::F8;

/// Kinds of storage, as numbered in `kernels/native.py`; anything else is bf16.
pub const FP32: usize = 0;

/// Rows of `width` numbers; `kind` says how they are stored.
#[derive(Clone, Copy)]
pub struct Keys {
    data: *const u8,
    kind: usize,
    width: usize,
}

impl Keys {
    pub fn new(data: *const u8, kind: usize, width: usize) -> Keys {
        Keys { data, kind, width }
    }

    /// The rows from `row` on.
    pub unsafe fn from(self, row: usize) -> Keys {
        Keys { data: self.data.wrapping_add(row * self.row_bytes()), ..self }
    }

    pub unsafe fn at(self, row: usize) -> Keys {
        self.from(row)
    }

    fn row_bytes(self) -> usize {
        row_bytes(self.kind, self.width)
    }

    /// Eight numbers of the first row, from `i` on.
    #[inline(always)]
    pub unsafe fn load(self, i: usize) -> F8 {
        if self.kind == FP32 {
            F8::load((self.data as *const f32).add(i))
        } else {
            F8::load_bf16((self.data as *const u16).add(i))
        }
    }
}

/// Bytes of one row as stored.
pub fn row_bytes(kind: usize, width: usize) -> usize {
    width * if kind == FP32 { 4 } else { 2 }
}

/// Writes a row in the given kind.
pub unsafe fn store(row: &[f32], target: *mut u8, kind: usize) {
    if kind == FP32 {
        std::ptr::copy_nonoverlapping(row.as_ptr() as *const u8, target, row.len() * 4);
        return;
    }
    for (i, x) in row.iter().enumerate() {
        (target as *mut u16).add(i).write_unaligned(to_bf16(*x));
    }
}

/// Rounded to the nearest bf16, halves to even; what is no number stays none.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// A selection of rows: pointers where they are fp32 already, else a plain copy.
#[derive(Default)]
pub struct Rows {
    copies: Vec<f32>,
    pointers: Vec<*const f32>,
}

impl Rows {
    /// Takes `count` rows, the i-th being `find(i)`.
    pub unsafe fn fill(&mut self, count: usize, width: usize, find: impl Fn(usize) -> Keys) {
        self.pointers.clear();
        if count == 0 {
            return;
        }
        if find(0).kind == FP32 {
            self.pointers.extend((0..count).map(|i| find(i).data as *const f32));
            return;
        }
        if self.copies.len() < count * width {
            self.copies.resize(count * width, 0.0);
        }
        let base = self.copies.as_mut_ptr();
        for row in 0..count {
            let source = find(row);
            for i in (0..width).step_by(8) {
                source.load(i).store(base.add(row * width + i));
            }
            self.pointers.push(base.add(row * width));
        }
    }

    #[inline(always)]
    pub fn row(&self, i: usize) -> *const f32 {
        self.pointers[i]
    }
}
