//! Vectors of fp32 lanes: eight (`F8`) and sixteen (`F16`).
//!
//! The library is built once for each set of instructions (see `native/hatch_build.py`) and the
//! loader takes the best one that the processor has: AVX-512 with bf16 products, AVX2 with FMA, or
//! plain arrays, which the compiler vectorises as it can.

#[cfg(target_feature = "avx2")]
mod avx2;
#[cfg(target_feature = "avx512bf16")]
mod avx512;
#[cfg(not(target_feature = "avx512bf16"))]
mod pair;
#[cfg(not(target_feature = "avx2"))]
mod plain;

#[cfg(target_feature = "avx2")]
pub use avx2::F8;
#[cfg(target_feature = "avx512bf16")]
pub use avx512::F16;
#[cfg(not(target_feature = "avx512bf16"))]
pub use pair::F16;
#[cfg(not(target_feature = "avx2"))]
pub use plain::F8;

/// Whether F16 is one register, of which there are 32 then.
pub const IS_WIDE: bool = cfg!(target_feature = "avx512bf16");

/// Has the processor fetch what will be read soon. Any address may be given.
#[inline(always)]
pub fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use core::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        _mm_prefetch::<_MM_HINT_T0>(p as *const i8);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Functions of lanes, alike for every width.
macro_rules! functions {
    ($lanes:ident, $count:literal) => {
        impl $lanes {
            #[inline(always)]
            pub fn zero() -> $lanes {
                $lanes::splat(0.0)
            }

            #[inline(always)]
            pub fn to_array(self) -> [f32; $count] {
                let mut out = [0.0; $count];
                unsafe { self.store(out.as_mut_ptr()) };
                out
            }

            /// e^self to about one unit in the last place; 0 below -87, lanes above 88 are cut to
            /// e^88.
            #[inline(always)]
            pub fn exp(self) -> $lanes {
                // e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts keeps r
                // exact; constants first: min and max then hand on what is no number
                let splat = $lanes::splat;
                let x = splat(-88.0).max(splat(88.0).min(self));
                let n = splat(0.5).fma(x, splat(std::f32::consts::LOG2_E)).floor();
                let r = x.fma(n, splat(-0.693_359_4)).fma(n, splat(2.121_944_4e-4));
                // Taylor's series with the last terms pulled in to spread the error over the
                // interval
                let mut p = splat(1.984_127e-4);
                for term in [1.388_889e-3, 8.333_334e-3, 4.166_667e-2, 1.666_667e-1, 0.5, 1.0, 1.0]
                {
                    p = splat(term).fma(p, r);
                }
                let scaled = p.mul(n.max(splat(-126.0)).power_of_two());
                // below the smallest normal number the answer is 0
                scaled.kept_above(self, splat(-87.0))
            }

            /// 1 / (1 + e^-self)
            #[inline(always)]
            pub fn sigmoid(self) -> $lanes {
                let one = $lanes::splat(1.0);
                one.div(one.add($lanes::zero().sub(self).exp()))
            }
        }
    };
}

functions!(F8, 8);
functions!(F16, 16);

impl F8 {
    pub const E2M1_BLOCK_UNIT: f32 = 0.5;
    pub const E4M3_BLOCK_UNIT: f32 = 256.0;

    /// The sum of all lanes, always in the same order.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        F8::sums([self; 4])[0]
    }
}

impl F16 {
    /// The sums of eight vectors' lanes, each always in the same order.
    #[inline(always)]
    pub fn sums(v: [F16; 8]) -> [f32; 8] {
        let half = v.map(|x| {
            let [low, high] = x.eights();
            low.add(high)
        });
        let (a, b) = (F8::sums([half[0], half[1], half[2], half[3]]), [half[4], half[5]]);
        let b = F8::sums([b[0], b[1], half[6], half[7]]);
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }

    /// The sum of all lanes, in that order too.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        let [low, high] = self.eights();
        low.add(high).sum()
    }
}

/// Sum of a[i] * b[i]; n is a multiple of 8.
#[inline(always)]
pub unsafe fn dot(a: *const f32, b: *const f32, n: usize) -> f32 {
    let mut acc = [F16::zero(); 4];
    let mut i = 0;
    while i + 64 <= n {
        for (k, lane) in acc.iter_mut().enumerate() {
            let at = i + 16 * k;
            *lane = lane.fma(F16::load(a.add(at)), F16::load(b.add(at)));
        }
        i += 64;
    }
    while i < n {
        let part = (n - i).min(16);
        acc[0] = acc[0].fma(F16::load_part(a.add(i), part), F16::load_part(b.add(i), part));
        i += 16;
    }
    acc[0].add(acc[1]).add(acc[2].add(acc[3])).sum()
}

pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
