//! Eight fp32 lanes. On x86-64 the crate is compiled for AVX2 and FMA (the loader checks the
//! processor); elsewhere plain arrays, which the compiler vectorises as it can.

#[cfg(target_arch = "x86_64")]
mod lanes {
    use core::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct F8(__m256);

    impl F8 {
        #[inline(always)]
        pub fn splat(x: f32) -> F8 {
            unsafe { F8(_mm256_set1_ps(x)) }
        }
        #[inline(always)]
        pub unsafe fn load(p: *const f32) -> F8 {
            F8(_mm256_loadu_ps(p))
        }
        /// Eight bf16 numbers.
        #[inline(always)]
        pub unsafe fn load_bf16(p: *const u16) -> F8 {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p as *const __m128i));
            F8(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
        /// Eight E4M3 codes: a code's bits are those of an fp32 number 2^120 too small.
        #[inline(always)]
        pub unsafe fn load_e4m3(p: *const u8) -> F8 {
            let codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p as *const __m128i));
            let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(codes, _mm256_set1_epi32(0x80)));
            let size = _mm256_slli_epi32::<20>(_mm256_and_si256(codes, _mm256_set1_epi32(0x7f)));
            let lift = _mm256_set1_ps(f32::from_bits((120 + 127) << 23));
            let size = _mm256_mul_ps(_mm256_castsi256_ps(size), lift);
            F8(_mm256_or_ps(size, _mm256_castsi256_ps(sign)))
        }
        /// Eight E2M1 codes in four bytes, the low nibble first.
        #[inline(always)]
        pub unsafe fn load_e2m1(p: *const u8) -> F8 {
            let word = _mm256_set1_epi32((p as *const i32).read_unaligned());
            let codes = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            let sizes = _mm256_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0);
            let size = _mm256_permutevar8x32_ps(sizes, codes); // reads three bits of each lane
            let sign = _mm256_slli_epi32::<28>(_mm256_and_si256(codes, _mm256_set1_epi32(8)));
            F8(_mm256_or_ps(size, _mm256_castsi256_ps(sign)))
        }
        /// 32 E2M1 codes, the 16 low nibbles first, in units of `E2M1_BLOCK_UNIT`.
        #[inline(always)]
        pub unsafe fn load_e2m1_block(p: *const u8) -> [F8; 4] {
            let bytes = _mm_loadu_si128(p as *const __m128i);
            let nibble = _mm_set1_epi8(15);
            let units = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
            let low = _mm_shuffle_epi8(units, _mm_and_si128(bytes, nibble));
            let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble);
            let high = _mm_shuffle_epi8(units, high);
            let wide = |eight| F8(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)));
            [
                wide(low),
                wide(_mm_srli_si128::<8>(low)),
                wide(high),
                wide(_mm_srli_si128::<8>(high)),
            ]
        }
        /// 32 E4M3 codes in units of `E4M3_BLOCK_UNIT`: a code's bits, moved up, are those of a
        /// 16-bit float 2^8 too small.
        #[inline(always)]
        pub unsafe fn load_e4m3_block(p: *const u8) -> [F8; 4] {
            let half = |at: usize| {
                let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.add(at) as *const __m128i));
                // an arithmetic shift copies the sign, and the copy goes
                let moved = _mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(codes));
                let bits = _mm256_and_si256(moved, _mm256_set1_epi16(0xbfffu16 as i16));
                let high = _mm256_extracti128_si256::<1>(bits);
                [
                    F8(_mm256_cvtph_ps(_mm256_castsi256_si128(bits))),
                    F8(_mm256_cvtph_ps(high)),
                ]
            };
            let (low, high) = (half(0), half(16));
            [low[0], low[1], high[0], high[1]]
        }
        /// Whether any of 32 E4M3 codes is no number.
        #[inline(always)]
        pub unsafe fn has_e4m3_nan(p: *const u8) -> bool {
            let codes = _mm256_loadu_si256(p as *const __m256i);
            let negative = _mm256_or_si256(codes, _mm256_set1_epi8(-128));
            _mm256_movemask_epi8(_mm256_cmpeq_epi8(negative, _mm256_set1_epi8(-1))) != 0
        }
        #[inline(always)]
        pub unsafe fn store(self, p: *mut f32) {
            _mm256_storeu_ps(p, self.0)
        }
        #[inline(always)]
        pub fn add(self, o: F8) -> F8 {
            unsafe { F8(_mm256_add_ps(self.0, o.0)) }
        }
        #[inline(always)]
        pub fn sub(self, o: F8) -> F8 {
            unsafe { F8(_mm256_sub_ps(self.0, o.0)) }
        }
        #[inline(always)]
        pub fn mul(self, o: F8) -> F8 {
            unsafe { F8(_mm256_mul_ps(self.0, o.0)) }
        }
        #[inline(always)]
        pub fn div(self, o: F8) -> F8 {
            unsafe { F8(_mm256_div_ps(self.0, o.0)) }
        }
        #[inline(always)]
        pub fn max(self, o: F8) -> F8 {
            unsafe { F8(_mm256_max_ps(self.0, o.0)) }
        }
        #[inline(always)]
        pub fn min(self, o: F8) -> F8 {
            unsafe { F8(_mm256_min_ps(self.0, o.0)) }
        }
        /// self + a * b, rounded once.
        #[inline(always)]
        pub fn fma(self, a: F8, b: F8) -> F8 {
            unsafe { F8(_mm256_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        pub fn floor(self) -> F8 {
            unsafe { F8(_mm256_floor_ps(self.0)) }
        }
        /// 2^self for lanes that hold whole numbers in -126..=127.
        #[inline(always)]
        pub fn power_of_two(self) -> F8 {
            unsafe {
                let n = _mm256_cvtps_epi32(self.0);
                let bits = _mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)));
                F8(_mm256_castsi256_ps(bits))
            }
        }
        /// The sums of four vectors' lanes, each always in the same order.
        #[inline(always)]
        pub fn sums(v: [F8; 4]) -> [f32; 4] {
            unsafe {
                let low = _mm256_hadd_ps(v[0].0, v[1].0);
                let high = _mm256_hadd_ps(v[2].0, v[3].0);
                let pairs = _mm256_hadd_ps(low, high);
                let halves = (_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
                let mut out = [0.0; 4];
                _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(halves.0, halves.1));
                out
            }
        }
        /// One bit per lane in which self is greater, or either side is no number.
        #[inline(always)]
        pub fn not_at_most(self, o: F8) -> u32 {
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NLE_UQ>(self.0, o.0)) as u32 }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod lanes {
    #[derive(Clone, Copy)]
    pub struct F8([f32; 8]);

    impl F8 {
        #[inline(always)]
        fn zip(self, o: F8, f: impl Fn(f32, f32) -> f32) -> F8 {
            F8(core::array::from_fn(|i| f(self.0[i], o.0[i])))
        }
        #[inline(always)]
        pub fn splat(x: f32) -> F8 {
            F8([x; 8])
        }
        #[inline(always)]
        pub unsafe fn load(p: *const f32) -> F8 {
            F8(core::ptr::read_unaligned(p as *const [f32; 8]))
        }
        #[inline(always)]
        pub unsafe fn load_bf16(p: *const u16) -> F8 {
            let raw = core::ptr::read_unaligned(p as *const [u16; 8]);
            F8(raw.map(|x| f32::from_bits((x as u32) << 16)))
        }
        #[inline(always)]
        pub unsafe fn load_e4m3(p: *const u8) -> F8 {
            let codes = core::ptr::read_unaligned(p as *const [u8; 8]);
            F8(codes.map(|code| {
                let size = f32::from_bits((code as u32 & 0x7f) << 20);
                let sign = (code as u32 & 0x80) << 24;
                f32::from_bits((size * f32::from_bits((120 + 127) << 23)).to_bits() | sign)
            }))
        }
        #[inline(always)]
        pub unsafe fn load_e2m1(p: *const u8) -> F8 {
            const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let word = (p as *const u32).read_unaligned();
            F8(core::array::from_fn(|i| {
                let code = word >> (4 * i);
                f32::from_bits(SIZES[(code & 7) as usize].to_bits() | (code & 8) << 28)
            }))
        }
        #[inline(always)]
        pub unsafe fn load_e2m1_block(p: *const u8) -> [F8; 4] {
            const UNITS: [f32; 16] = [
                0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0,
                -12.0,
            ];
            let bytes = core::ptr::read_unaligned(p as *const [u8; 16]);
            core::array::from_fn(|part| {
                F8(core::array::from_fn(|i| {
                    let byte = bytes[part % 2 * 8 + i];
                    UNITS[(if part < 2 { byte & 15 } else { byte >> 4 }) as usize]
                }))
            })
        }
        #[inline(always)]
        pub unsafe fn load_e4m3_block(p: *const u8) -> [F8; 4] {
            let unit = F8::splat(1.0 / F8::E4M3_BLOCK_UNIT);
            core::array::from_fn(|part| F8::load_e4m3(p.add(8 * part)).mul(unit))
        }
        #[inline(always)]
        pub unsafe fn has_e4m3_nan(p: *const u8) -> bool {
            (0..32).any(|i| *p.add(i) & 0x7f == 0x7f)
        }
        #[inline(always)]
        pub unsafe fn store(self, p: *mut f32) {
            core::ptr::write_unaligned(p as *mut [f32; 8], self.0)
        }
        #[inline(always)]
        pub fn add(self, o: F8) -> F8 {
            self.zip(o, |a, b| a + b)
        }
        #[inline(always)]
        pub fn sub(self, o: F8) -> F8 {
            self.zip(o, |a, b| a - b)
        }
        #[inline(always)]
        pub fn mul(self, o: F8) -> F8 {
            self.zip(o, |a, b| a * b)
        }
        #[inline(always)]
        pub fn div(self, o: F8) -> F8 {
            self.zip(o, |a, b| a / b)
        }
        #[inline(always)]
        pub fn max(self, o: F8) -> F8 {
            self.zip(o, |a, b| if a > b { a } else { b })
        }
        #[inline(always)]
        pub fn min(self, o: F8) -> F8 {
            self.zip(o, |a, b| if a < b { a } else { b })
        }
        #[inline(always)]
        pub fn fma(self, a: F8, b: F8) -> F8 {
            F8(core::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
        }
        #[inline(always)]
        pub fn floor(self) -> F8 {
            F8(self.0.map(f32::floor))
        }
        #[inline(always)]
        pub fn power_of_two(self) -> F8 {
            F8(self.0.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23)))
        }
        #[inline(always)]
        pub fn sums(v: [F8; 4]) -> [f32; 4] {
            v.map(|x| {
                let a = x.0;
                ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))
            })
        }
        #[inline(always)]
        pub fn not_at_most(self, o: F8) -> u32 {
            (0..8).filter(|&i| !(self.0[i] <= o.0[i])).map(|i| 1 << i).sum()
        }
    }
}

pub use lanes::F8;

impl F8 {
    pub const E2M1_BLOCK_UNIT: f32 = 0.5;
    pub const E4M3_BLOCK_UNIT: f32 = 256.0;

    #[inline(always)]
    pub fn zero() -> F8 {
        F8::splat(0.0)
    }

    #[inline(always)]
    pub fn to_array(self) -> [f32; 8] {
        let mut out = [0.0; 8];
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// The sum of all lanes, always in the same order.
    #[inline(always)]
    pub fn sum(self) -> f32 {
        F8::sums([self; 4])[0]
    }

    /// e^self to about one unit in the last place; 0 below -87, lanes above 88 are cut to e^88.
    #[inline(always)]
    pub fn exp(self) -> F8 {
        // e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts keeps r exact
        // constants first: min and max then hand on what is no number
        let x = F8::splat(-88.0).max(F8::splat(88.0).min(self));
        let n = x.fma_of(std::f32::consts::LOG2_E, 0.5).floor();
        let r = x.fma(n, F8::splat(-0.693_359_4)).fma(n, F8::splat(2.121_944_4e-4));
        // Taylor's series with the last terms pulled in to spread the error over the interval
        let mut p = F8::splat(1.984_127e-4);
        for coefficient in [1.388_889e-3, 8.333_334e-3, 4.166_667e-2, 1.666_667e-1, 0.5, 1.0, 1.0] {
            p = F8::splat(coefficient).fma(p, r);
        }
        let scaled = p.mul(n.max(F8::splat(-126.0)).power_of_two());
        // below the smallest normal number the answer is 0
        let alive = self.not_at_most(F8::splat(-87.0));
        if alive == 0xff {
            return scaled;
        }
        let mut lanes = scaled.to_array();
        for (i, lane) in lanes.iter_mut().enumerate() {
            if alive >> i & 1 == 0 {
                *lane = 0.0;
            }
        }
        unsafe { F8::load(lanes.as_ptr()) }
    }

    /// self * a + b
    #[inline(always)]
    fn fma_of(self, a: f32, b: f32) -> F8 {
        F8::splat(b).fma(self, F8::splat(a))
    }

    /// 1 / (1 + e^-self)
    #[inline(always)]
    pub fn sigmoid(self) -> F8 {
        let one = F8::splat(1.0);
        one.div(one.add(F8::zero().sub(self).exp()))
    }
}

/// Sum of a[i] * b[i]; n is a multiple of 8.
#[inline(always)]
pub unsafe fn dot(a: *const f32, b: *const f32, n: usize) -> f32 {
    let mut acc = [F8::zero(); 4];
    let mut i = 0;
    while i + 32 <= n {
        for (k, lane) in acc.iter_mut().enumerate() {
            *lane = lane.fma(F8::load(a.add(i + 8 * k)), F8::load(b.add(i + 8 * k)));
        }
        i += 32;
    }
    while i < n {
        acc[0] = acc[0].fma(F8::load(a.add(i)), F8::load(b.add(i)));
        i += 8;
    }
    acc[0].add(acc[1]).add(acc[2].add(acc[3])).sum()
}

pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
