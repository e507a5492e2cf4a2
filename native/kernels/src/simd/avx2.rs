//! Eight fp32 lanes of AVX2.

use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct F8(__m256);

impl F8 {
    #[cfg(target_feature = "avx512bf16")]
    #[inline(always)]
    pub fn of(lanes: __m256) -> F8 {
        F8(lanes)
    }
    #[cfg(target_feature = "avx512bf16")]
    #[inline(always)]
    pub fn lanes(self) -> __m256 {
        self.0
    }
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
        [wide(low), wide(_mm_srli_si128::<8>(low)), wide(high), wide(_mm_srli_si128::<8>(high))]
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
            [F8(_mm256_cvtph_ps(_mm256_castsi256_si128(bits))), F8(_mm256_cvtph_ps(high))]
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
    /// self where x is above the bound or no number, else 0.
    #[inline(always)]
    pub fn kept_above(self, x: F8, bound: F8) -> F8 {
        unsafe { F8(_mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_NLE_UQ>(x.0, bound.0))) }
    }
    /// Pairs of lanes turned by angles of which `phases` holds cosine and sine.
    #[inline(always)]
    pub fn turn(self, phases: F8) -> F8 {
        unsafe {
            let (cos, sin) = (_mm256_moveldup_ps(phases.0), _mm256_movehdup_ps(phases.0));
            let swapped = _mm256_permute_ps::<0xb1>(self.0);
            F8(_mm256_fmaddsub_ps(self.0, cos, _mm256_mul_ps(swapped, sin)))
        }
    }
    /// Columns of eight rows.
    #[inline(always)]
    pub fn transpose(rows: [F8; 8]) -> [F8; 8] {
        unsafe {
            let pair = |i: usize| {
                let (a, b) = (rows[i].0, rows[i + 1].0);
                (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b))
            };
            let four = |a: (__m256, __m256), b: (__m256, __m256)| {
                [
                    _mm256_shuffle_ps::<0x44>(a.0, b.0),
                    _mm256_shuffle_ps::<0xee>(a.0, b.0),
                    _mm256_shuffle_ps::<0x44>(a.1, b.1),
                    _mm256_shuffle_ps::<0xee>(a.1, b.1),
                ]
            };
            let (low, high) = (four(pair(0), pair(2)), four(pair(4), pair(6)));
            core::array::from_fn(|i| {
                let (a, b) = (low[i % 4], high[i % 4]);
                F8(if i < 4 {
                    _mm256_permute2f128_ps::<0x20>(a, b)
                } else {
                    _mm256_permute2f128_ps::<0x31>(a, b)
                })
            })
        }
    }
    /// The two bf16 numbers in each lane as fp32: those in the low halves, those in the high ones.
    #[inline(always)]
    pub fn halves(self) -> [F8; 2] {
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let high = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000u32 as i32));
            [F8(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))), F8(_mm256_castsi256_ps(high))]
        }
    }
}
