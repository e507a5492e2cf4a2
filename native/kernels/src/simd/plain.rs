//! Eight fp32 lanes as plain arrays, which the compiler vectorises as it can.

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
        F8(core::array::from_fn(|i| fused(a.0[i], b.0[i], self.0[i])))
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
    #[inline(always)]
    pub fn kept_above(self, x: F8, bound: F8) -> F8 {
        F8(core::array::from_fn(|i| if x.0[i] <= bound.0[i] { 0.0 } else { self.0[i] }))
    }
    #[inline(always)]
    pub fn turn(self, phases: F8) -> F8 {
        F8(core::array::from_fn(|i| {
            let (cos, sin) = (phases.0[i & !1], phases.0[i | 1]);
            let sin = if i % 2 == 0 { -sin } else { sin };
            self.0[i] * cos + self.0[i ^ 1] * sin
        }))
    }
    #[inline(always)]
    pub fn transpose(rows: [F8; 8]) -> [F8; 8] {
        core::array::from_fn(|i| F8(core::array::from_fn(|j| rows[j].0[i])))
    }
    #[inline(always)]
    pub fn halves(self) -> [F8; 2] {
        let bits = self.0.map(f32::to_bits);
        [
            F8(bits.map(|x| f32::from_bits(x << 16))),
            F8(bits.map(|x| f32::from_bits(x & 0xffff_0000))),
        ]
    }
}

/// a * b + c, rounded once where the processor can: a library's fused product takes many times as
/// long.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", not(target_arch = "x86_64"))) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}
