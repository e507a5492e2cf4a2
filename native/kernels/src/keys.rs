//! Cached vectors in whatever form the cache keeps them, read as fp32; see `kernels/entries.py`.

use crate::matrix::room;
use crate::packing;
use crate::simd::F8;

/// Forms, as numbered in `kernels/native.py`.
pub const FP32: usize = 0;
pub const BF16: usize = 1;
pub const FP8: usize = 2;
pub const FP4: usize = 3;

/// Entries of `width` numbers. Packed ones lie in pages: all codes, then all scales.
#[derive(Clone, Copy)]
pub struct Keys {
    pub data: *const u8,
    pub kind: usize,
    pub width: usize,
    /// Last numbers of an entry, in bf16 where the rest is fp8.
    pub rope: usize,
    /// Entries to a page.
    pub page: usize,
}

/// One entry.
#[derive(Clone, Copy)]
pub struct Key {
    codes: *const u8,
    scales: *const u8,
    kind: usize,
    nope: usize,
}

impl Keys {
    pub fn code_bytes(&self) -> usize {
        match self.kind {
            FP32 => 4 * self.width,
            BF16 => 2 * self.width,
            FP8 => self.width + self.rope,
            _ => self.width / 2,
        }
    }

    pub fn scale_bytes(&self) -> usize {
        match self.kind {
            FP32 | BF16 => 0,
            FP8 => (self.width - self.rope).div_ceil(packing::TILE).next_multiple_of(8),
            _ => self.width / packing::BLOCK,
        }
    }

    #[inline(always)]
    pub fn at(&self, place: usize) -> Key {
        let (codes, scales) = (self.code_bytes(), self.scale_bytes());
        let nope = self.width - self.rope;
        if scales == 0 {
            let codes = self.data.wrapping_add(place * codes);
            return Key { codes, scales: codes, kind: self.kind, nope };
        }
        let (page, row) = (place / self.page, place % self.page);
        let page = self.data.wrapping_add(page * self.page * (codes + scales));
        Key {
            codes: page.wrapping_add(row * codes),
            scales: page.wrapping_add(self.page * codes + row * scales),
            kind: self.kind,
            nope,
        }
    }

    /// The same entries of another row of a batch.
    pub fn row(&self, row: usize, stride: usize) -> Keys {
        Keys { data: self.data.wrapping_add(row * stride), ..*self }
    }

    /// Writes one entry.
    pub unsafe fn store(&self, place: usize, values: &mut [f32]) {
        let key = self.at(place);
        let (codes, scales) = (key.codes as *mut u8, key.scales as *mut u8);
        match self.kind {
            FP32 => std::ptr::copy_nonoverlapping(
                values.as_ptr() as *const u8,
                codes,
                4 * values.len(),
            ),
            BF16 => packing::store_bf16(values, codes),
            FP8 => packing::store_fp8(values, self.rope, codes, scales),
            _ => {
                packing::hadamard(values);
                packing::store_fp4(values, codes, scales);
            }
        }
    }
}

impl Key {
    /// Where its numbers begin.
    pub fn bytes(&self) -> *const u8 {
        self.codes
    }

    /// Eight numbers from `i` on, a multiple of 8.
    #[inline(always)]
    pub unsafe fn load(&self, i: usize) -> F8 {
        self.load_of(self.kind, i)
    }

    /// The same, where the caller knows the kind when it is compiled.
    #[inline(always)]
    pub unsafe fn load_of(&self, kind: usize, i: usize) -> F8 {
        match kind {
            FP32 => F8::load((self.codes as *const f32).add(i)),
            BF16 => F8::load_bf16((self.codes as *const u16).add(i)),
            FP8 if i < self.nope => {
                let scale = packing::power(*self.scales.add(i / packing::TILE));
                F8::load_e4m3(self.codes.add(i)).mul(F8::splat(scale))
            }
            FP8 => F8::load_bf16(self.codes.add(2 * i - self.nope) as *const u16),
            _ => {
                let scale = packing::power(*self.scales.add(i / packing::BLOCK));
                F8::load_e2m1(self.codes.add(i / 2)).mul(F8::splat(scale))
            }
        }
    }
}

/// Writes vectors into packed pages.
#[repr(C)]
pub struct PackArgs {
    pub values: *const f32,
    /// [count]: of which row of the batch, and as which entry.
    pub rows: *const i64,
    pub places: *const i64,
    pub data: *mut u8,
    pub count: usize,
    pub width: usize,
    pub rope: usize,
    pub page: usize,
    pub kind: usize,
    /// Bytes from one row of the batch to the next.
    pub stride: usize,
}

pub unsafe fn pack(a: &PackArgs) {
    let (width, rope, page, kind) = (a.width, a.rope, a.page, a.kind);
    let list = Keys { data: a.data, kind, width, rope, page };
    let mut values = vec![0.0f32; width];
    for i in 0..a.count {
        values.copy_from_slice(std::slice::from_raw_parts(a.values.add(i * width), width));
        let row = list.row(*a.rows.add(i) as usize, a.stride);
        row.store(*a.places.add(i) as usize, &mut values);
    }
}

/// A selection of entries: pointers where their kind is plain, else copies in fp32.
#[derive(Default)]
pub struct Rows {
    copies: Vec<f32>,
    pub pointers: Vec<*const u8>,
    pub kind: usize,
}

// the pointers are read by whoever holds the rows
unsafe impl Send for Rows {}

impl Rows {
    /// Takes `count` entries, the i-th being `find(i)`, of which each is of `kind`, or of any kind
    /// where that is FP32.
    pub unsafe fn fill(
        &mut self,
        count: usize,
        width: usize,
        kind: usize,
        find: impl Fn(usize) -> Key,
    ) {
        self.kind = if kind == BF16 { BF16 } else { FP32 };
        self.pointers.clear();
        for row in 0..count {
            let source = find(row);
            if source.kind == self.kind {
                self.pointers.push(source.codes);
                continue;
            }
            let base = room(&mut self.copies, count * width)[row * width..].as_mut_ptr();
            for i in (0..width).step_by(8) {
                source.load(i).store(base.add(i));
            }
            self.pointers.push(base as *const u8);
        }
    }
}
