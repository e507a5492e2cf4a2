//! Sixteen fp32 lanes as two times eight.

use super::F8;

#[derive(Clone, Copy)]
pub struct F16(F8, F8);

impl F16 {
    #[inline(always)]
    pub fn splat(x: f32) -> F16 {
        F16(F8::splat(x), F8::splat(x))
    }
    #[inline(always)]
    pub unsafe fn load(p: *const f32) -> F16 {
        F16(F8::load(p), F8::load(p.add(8)))
    }
    /// The first `count` <= 16 numbers, then zeros.
    #[inline(always)]
    pub unsafe fn load_part(p: *const f32, count: usize) -> F16 {
        match count {
            16 => F16::load(p),
            8 => F16(F8::load(p), F8::splat(0.0)),
            _ => {
                let mut all = [0.0f32; 16];
                core::ptr::copy_nonoverlapping(p, all.as_mut_ptr(), count);
                F16::load(all.as_ptr())
            }
        }
    }
    #[inline(always)]
    pub unsafe fn load_bf16(p: *const u16) -> F16 {
        F16(F8::load_bf16(p), F8::load_bf16(p.add(8)))
    }
    /// Eight bf16 numbers, then zeros.
    #[inline(always)]
    pub unsafe fn load_bf16_half(p: *const u16) -> F16 {
        F16(F8::load_bf16(p), F8::splat(0.0))
    }
    /// Sixteen E2M1 codes in eight bytes, the low nibble first.
    #[inline(always)]
    pub unsafe fn load_e2m1(p: *const u8) -> F16 {
        F16(F8::load_e2m1(p), F8::load_e2m1(p.add(4)))
    }
    #[inline(always)]
    pub unsafe fn load_e4m3(p: *const u8) -> F16 {
        F16(F8::load_e4m3(p), F8::load_e4m3(p.add(8)))
    }
    /// Rounded to bf16.
    #[inline(always)]
    pub unsafe fn store_bf16(self, p: *mut u16) {
        let numbers = self.to_array();
        crate::packing::store_bf16(&numbers, p as *mut u8);
    }
    #[inline(always)]
    pub unsafe fn store(self, p: *mut f32) {
        self.0.store(p);
        self.1.store(p.add(8));
    }
    /// The first `count` <= 16 lanes.
    #[inline(always)]
    pub unsafe fn store_part(self, p: *mut f32, count: usize) {
        match count {
            16 => self.store(p),
            8 => self.0.store(p),
            _ => core::ptr::copy_nonoverlapping(self.to_array().as_ptr(), p, count),
        }
    }
    #[inline(always)]
    pub fn from_eights(parts: [F8; 2]) -> F16 {
        F16(parts[0], parts[1])
    }
    #[inline(always)]
    pub fn eights(self) -> [F8; 2] {
        [self.0, self.1]
    }
    #[inline(always)]
    pub fn add(self, o: F16) -> F16 {
        F16(self.0.add(o.0), self.1.add(o.1))
    }
    #[inline(always)]
    pub fn sub(self, o: F16) -> F16 {
        F16(self.0.sub(o.0), self.1.sub(o.1))
    }
    #[inline(always)]
    pub fn mul(self, o: F16) -> F16 {
        F16(self.0.mul(o.0), self.1.mul(o.1))
    }
    #[inline(always)]
    pub fn div(self, o: F16) -> F16 {
        F16(self.0.div(o.0), self.1.div(o.1))
    }
    #[inline(always)]
    pub fn max(self, o: F16) -> F16 {
        F16(self.0.max(o.0), self.1.max(o.1))
    }
    #[inline(always)]
    pub fn min(self, o: F16) -> F16 {
        F16(self.0.min(o.0), self.1.min(o.1))
    }
    /// self + a * b, rounded once.
    #[inline(always)]
    pub fn fma(self, a: F16, b: F16) -> F16 {
        F16(self.0.fma(a.0, b.0), self.1.fma(a.1, b.1))
    }
    /// self + a * b for two bf16 numbers in each lane.
    #[inline(always)]
    pub fn dot(self, a: F16, b: F16) -> F16 {
        let eight = |sum: F8, a: F8, b: F8| {
            let (a, b) = (a.halves(), b.halves());
            sum.fma(a[0], b[0]).fma(a[1], b[1])
        };
        F16(eight(self.0, a.0, b.0), eight(self.1, a.1, b.1))
    }
    #[inline(always)]
    pub fn floor(self) -> F16 {
        F16(self.0.floor(), self.1.floor())
    }
    #[inline(always)]
    pub fn power_of_two(self) -> F16 {
        F16(self.0.power_of_two(), self.1.power_of_two())
    }
    #[inline(always)]
    pub fn kept_above(self, x: F16, bound: F16) -> F16 {
        F16(self.0.kept_above(x.0, bound.0), self.1.kept_above(x.1, bound.1))
    }
    #[inline(always)]
    pub fn not_at_most(self, o: F16) -> u32 {
        self.0.not_at_most(o.0) | self.1.not_at_most(o.1) << 8
    }
    /// Pairs of lanes turned by angles of which `phases` holds cosine and sine.
    #[inline(always)]
    pub fn turn(self, phases: F16) -> F16 {
        F16(self.0.turn(phases.0), self.1.turn(phases.1))
    }
    /// The sums of sixteen vectors' lanes, each always in the same order.
    #[inline(always)]
    pub fn all_sums(v: [F16; 16]) -> F16 {
        let half = v.map(|x| x.0.add(x.1));
        let mut out = [0.0; 16];
        for (target, four) in out.chunks_mut(4).zip(half.chunks(4)) {
            target.copy_from_slice(&F8::sums([four[0], four[1], four[2], four[3]]));
        }
        unsafe { F16::load(out.as_ptr()) }
    }
    /// The whole numbers from `first` on, as the bits of lanes.
    #[inline(always)]
    pub fn counting(first: i32) -> F16 {
        let lanes: [i32; 16] = core::array::from_fn(|lane| first + lane as i32);
        unsafe { F16::load(lanes.as_ptr() as *const f32) }
    }
    /// Puts the lanes that `mask` names one behind the other; may write a whole vector.
    #[inline(always)]
    pub unsafe fn pack(self, mut mask: u32, mut p: *mut f32) {
        let lanes = self.to_array();
        while mask != 0 {
            *p = lanes[mask.trailing_zeros() as usize];
            p = p.add(1);
            mask &= mask - 1;
        }
    }
    /// Columns of sixteen rows.
    #[inline(always)]
    pub fn transpose(rows: [F16; 16]) -> [F16; 16] {
        let part = |first: usize, high: bool| {
            F8::transpose(core::array::from_fn(|i| {
                let row = rows[first + i];
                if high {
                    row.1
                } else {
                    row.0
                }
            }))
        };
        let (a, b, c, d) = (part(0, false), part(8, false), part(0, true), part(8, true));
        core::array::from_fn(|i| if i < 8 { F16(a[i], b[i]) } else { F16(c[i - 8], d[i - 8]) })
    }
}
