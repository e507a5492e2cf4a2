//! Sixteen fp32 lanes of AVX-512, with products of bf16 pairs.

use super::F8;
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct F16(__m512);

#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// bf16 numbers of E2M1 codes in the low four bits of each half lane.
#[inline(always)]
unsafe fn e2m1_values(codes: __m512i) -> __m512i {
    const fn table() -> [u16; 32] {
        // 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, twice: an index has five bits
        const SIZES: [u16; 8] = [0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0];
        let mut values = [0; 32];
        let mut i = 0;
        while i < 32 {
            values[i] = SIZES[i % 8] | ((i / 8 % 2) as u16) << 15;
            i += 1;
        }
        values
    }
    const TABLE: [u16; 32] = table();
    _mm512_permutexvar_epi16(codes, _mm512_loadu_si512(TABLE.as_ptr() as *const __m512i))
}

impl F16 {
    #[inline(always)]
    pub fn splat(x: f32) -> F16 {
        unsafe { F16(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    pub unsafe fn load(p: *const f32) -> F16 {
        F16(_mm512_loadu_ps(p))
    }
    /// The first `count` <= 16 numbers, then zeros.
    #[inline(always)]
    pub unsafe fn load_part(p: *const f32, count: usize) -> F16 {
        F16(_mm512_maskz_loadu_ps(first(count), p))
    }
    #[inline(always)]
    pub unsafe fn load_bf16(p: *const u16) -> F16 {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p as *const __m256i));
        F16(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
    }
    /// Eight bf16 numbers, then zeros.
    #[inline(always)]
    pub unsafe fn load_bf16_half(p: *const u16) -> F16 {
        F16::from_eights([F8::load_bf16(p), F8::splat(0.0)])
    }
    /// Sixteen E2M1 codes in eight bytes, the low nibble first.
    #[inline(always)]
    pub unsafe fn load_e2m1(p: *const u8) -> F16 {
        let word = |at: usize| _mm512_set1_epi32((p.add(at) as *const i32).read_unaligned());
        let words = _mm512_mask_blend_epi32(0xff00, word(0), word(4));
        let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
        let values = _mm512_setr_ps(
            0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
        );
        F16(_mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts), values))
    }
    #[inline(always)]
    pub unsafe fn load_e4m3(p: *const u8) -> F16 {
        let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p as *const __m128i));
        let sign = _mm512_slli_epi32::<24>(_mm512_and_si512(codes, _mm512_set1_epi32(0x80)));
        let size = _mm512_slli_epi32::<20>(_mm512_and_si512(codes, _mm512_set1_epi32(0x7f)));
        let lift = _mm512_set1_ps(f32::from_bits((120 + 127) << 23));
        let size = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(size), lift));
        F16(_mm512_castsi512_ps(_mm512_or_si512(size, sign)))
    }
    /// 32 E2M1 codes as pairs of bf16, the 16 low nibbles first.
    #[inline(always)]
    pub unsafe fn load_e2m1_pairs(p: *const u8) -> F16 {
        let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(p as *const __m128i));
        let both =
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(bytes), _mm256_srli_epi16::<4>(bytes));
        F16(_mm512_castsi512_ps(e2m1_values(both)))
    }
    /// 32 E2M1 codes in their order as pairs of bf16, times 2^power; the results are normal numbers.
    #[inline(always)]
    pub unsafe fn load_e2m1_scaled(p: *const u8, power: i16) -> F16 {
        let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p as *const __m128i));
        // the high nibble, the odd input, goes into the upper half of each lane
        let both = _mm512_or_si512(bytes, _mm512_slli_epi32::<12>(bytes));
        let values = e2m1_values(both);
        let sizes = _mm512_set1_epi16(0x7fff);
        let alive = _mm512_test_epi16_mask(values, sizes);
        let scale = _mm512_set1_epi16(power << 7);
        F16(_mm512_castsi512_ps(_mm512_mask_add_epi16(values, alive, values, scale)))
    }
    /// Rounded to bf16, as the processor's products take it: what is below 2^-126 becomes 0.
    #[inline(always)]
    pub unsafe fn store_bf16(self, p: *mut u16) {
        let rounded: __m256i = core::mem::transmute(_mm512_cvtneps_pbh(self.0));
        _mm256_storeu_si256(p as *mut __m256i, rounded)
    }
    #[inline(always)]
    pub unsafe fn store(self, p: *mut f32) {
        _mm512_storeu_ps(p, self.0)
    }
    /// The first `count` <= 16 lanes.
    #[inline(always)]
    pub unsafe fn store_part(self, p: *mut f32, count: usize) {
        _mm512_mask_storeu_ps(p, first(count), self.0)
    }
    #[inline(always)]
    pub fn from_eights(parts: [F8; 2]) -> F16 {
        unsafe {
            let low = _mm512_castps256_ps512(parts[0].lanes());
            F16(_mm512_insertf32x8::<1>(low, parts[1].lanes()))
        }
    }
    #[inline(always)]
    pub fn eights(self) -> [F8; 2] {
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(self.0);
            [F8::of(_mm512_castps512_ps256(self.0)), F8::of(high)]
        }
    }
    #[inline(always)]
    pub fn add(self, o: F16) -> F16 {
        unsafe { F16(_mm512_add_ps(self.0, o.0)) }
    }
    #[inline(always)]
    pub fn sub(self, o: F16) -> F16 {
        unsafe { F16(_mm512_sub_ps(self.0, o.0)) }
    }
    #[inline(always)]
    pub fn mul(self, o: F16) -> F16 {
        unsafe { F16(_mm512_mul_ps(self.0, o.0)) }
    }
    #[inline(always)]
    pub fn div(self, o: F16) -> F16 {
        unsafe { F16(_mm512_div_ps(self.0, o.0)) }
    }
    #[inline(always)]
    pub fn max(self, o: F16) -> F16 {
        unsafe { F16(_mm512_max_ps(self.0, o.0)) }
    }
    #[inline(always)]
    pub fn min(self, o: F16) -> F16 {
        unsafe { F16(_mm512_min_ps(self.0, o.0)) }
    }
    /// self + a * b, rounded once.
    #[inline(always)]
    pub fn fma(self, a: F16, b: F16) -> F16 {
        unsafe { F16(_mm512_fmadd_ps(a.0, b.0, self.0)) }
    }
    /// self + a * b for two bf16 numbers in each lane.
    #[inline(always)]
    pub fn dot(self, a: F16, b: F16) -> F16 {
        unsafe {
            let pairs = |x: F16| core::mem::transmute::<__m512, __m512bh>(x.0);
            F16(_mm512_dpbf16_ps(self.0, pairs(a), pairs(b)))
        }
    }
    #[inline(always)]
    pub fn floor(self) -> F16 {
        unsafe { F16(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF }>(self.0)) }
    }
    /// 2^self for lanes that hold whole numbers in -126..=127.
    #[inline(always)]
    pub fn power_of_two(self) -> F16 {
        unsafe {
            let n = _mm512_cvtps_epi32(self.0);
            let bits = _mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127)));
            F16(_mm512_castsi512_ps(bits))
        }
    }
    /// self where x is above the bound or no number, else 0.
    #[inline(always)]
    pub fn kept_above(self, x: F16, bound: F16) -> F16 {
        unsafe { F16(_mm512_maskz_mov_ps(x.not_at_most(bound) as __mmask16, self.0)) }
    }
    /// One bit per lane in which self is greater, or either side is no number.
    #[inline(always)]
    pub fn not_at_most(self, o: F16) -> u32 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(self.0, o.0) as u32 }
    }
    /// Pairs of lanes turned by angles of which `phases` holds cosine and sine.
    #[inline(always)]
    pub fn turn(self, phases: F16) -> F16 {
        unsafe {
            let (cos, sin) = (_mm512_moveldup_ps(phases.0), _mm512_movehdup_ps(phases.0));
            let swapped = _mm512_permute_ps::<0xb1>(self.0);
            F16(_mm512_fmaddsub_ps(self.0, cos, _mm512_mul_ps(swapped, sin)))
        }
    }
    /// The sums of sixteen vectors' lanes, each always in the same order.
    #[inline(always)]
    pub fn all_sums(v: [F16; 16]) -> F16 {
        unsafe {
            // in each quarter the sums of four vectors, then the quarters of four such
            let four = |i: usize| {
                let two = |i: usize| {
                    let (a, b) = (v[i].0, v[i + 1].0);
                    _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
                };
                let (ab, cd) = (two(i), two(i + 2));
                let low = _mm512_shuffle_ps::<0x44>(ab, cd);
                _mm512_add_ps(low, _mm512_shuffle_ps::<0xee>(ab, cd))
            };
            let halves = |a: __m512, b: __m512| {
                let even = _mm512_shuffle_f32x4::<0x88>(a, b);
                _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(a, b))
            };
            F16(halves(halves(four(0), four(4)), halves(four(8), four(12))))
        }
    }
    /// The whole numbers from `first` on, as the bits of lanes.
    #[inline(always)]
    pub fn counting(first: i32) -> F16 {
        unsafe {
            let all = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            F16(_mm512_castsi512_ps(_mm512_add_epi32(all, _mm512_set1_epi32(first))))
        }
    }
    /// Puts the lanes that `mask` names one behind the other; writes a whole vector.
    #[inline(always)]
    pub unsafe fn pack(self, mask: u32, p: *mut f32) {
        _mm512_storeu_ps(p, _mm512_maskz_compress_ps(mask as __mmask16, self.0));
    }
    /// Columns of sixteen rows.
    #[inline(always)]
    pub fn transpose(rows: [F16; 16]) -> [F16; 16] {
        unsafe {
            // within each quarter first: four rows to four columns of each quarter
            let four = |i: usize| -> [__m512; 4] {
                let (a, b) = (rows[i].0, rows[i + 1].0);
                let (c, d) = (rows[i + 2].0, rows[i + 3].0);
                let low = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let high = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                [
                    _mm512_shuffle_ps::<0x44>(low.0, low.1),
                    _mm512_shuffle_ps::<0xee>(low.0, low.1),
                    _mm512_shuffle_ps::<0x44>(high.0, high.1),
                    _mm512_shuffle_ps::<0xee>(high.0, high.1),
                ]
            };
            let parts = [four(0), four(4), four(8), four(12)];
            // then the quarters themselves
            let mut out = rows;
            for i in 0..4 {
                let (a, b, c, d) = (parts[0][i], parts[1][i], parts[2][i], parts[3][i]);
                let even = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                let odd = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                out[i] = F16(_mm512_shuffle_f32x4::<0x88>(even.0, even.1));
                out[i + 4] = F16(_mm512_shuffle_f32x4::<0x88>(odd.0, odd.1));
                out[i + 8] = F16(_mm512_shuffle_f32x4::<0xdd>(even.0, even.1));
                out[i + 12] = F16(_mm512_shuffle_f32x4::<0xdd>(odd.0, odd.1));
            }
            out
        }
    }
}
