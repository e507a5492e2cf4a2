//! The model's hot operations on the CPU, called through C with pointers to contiguous tensors.
//!
//! Each function is one operation of the package `kernels`, whose plain form in Python is the
//! reference. Every row is computed alone and in a fixed order, so a result does not depend on what
//! else a call holds.

mod attend;
mod best;
mod few;
mod heads;
mod keys;
mod matrix;
#[cfg(target_feature = "avx512bf16")]
mod narrow;
mod packing;
mod panels;
mod pool;
mod rows;
mod select;
mod simd;
mod step;
mod streams;
mod threads;

/// Changes with every change of a signature; the loader refuses another.
pub const INTERFACE: u32 = 9;

#[no_mangle]
pub extern "C" fn baleen_interface() -> u32 {
    INTERFACE
}

/// The best form of the library that this processor can run, as a place in the order of
/// `kernels/isa.py`, the plainest being 0. Only the plain form's answer counts: the others take for
/// granted what they were compiled for.
#[no_mangle]
pub extern "C" fn baleen_instructions() -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! has {
            ($($feature:tt)*) => { $(std::is_x86_feature_detected!($feature))&&* };
        }
        if has!("avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe" "popcnt") {
            return 1 + u32::from(
                has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512bf16"),
            );
        }
    }
    0
}

/// # Safety
/// Pointers and sizes must describe live tensors; this holds for all functions below.
#[no_mangle]
pub unsafe extern "C" fn baleen_attend(args: *const attend::AttendArgs) {
    attend::attend(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_select(args: *const select::SelectArgs) -> bool {
    select::select(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_mix(args: *const streams::MixArgs) {
    streams::mix(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_read_out(args: *const streams::MixArgs) {
    streams::read_out(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_expand(args: *const streams::ExpandArgs) {
    streams::expand(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_norm_rotate(args: *const rows::NormRotateArgs) {
    rows::norm_rotate(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_gate(args: *const rows::GateArgs) {
    rows::gate(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_step(args: *const step::StepArgs) -> bool {
    step::step(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_product(args: *const matrix::ProductArgs) {
    matrix::product(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_decode(args: *const matrix::DecodeArgs) {
    matrix::decode(&*args)
}

/// # Safety
/// See `baleen_attend`.
#[no_mangle]
pub unsafe extern "C" fn baleen_pack(args: *const keys::PackArgs) {
    keys::pack(&*args)
}
