//! The model's hot operations on the CPU, called through C with pointers to contiguous tensors.
//!
//! Each function is one operation of the package `kernels`, whose plain form in Python is the
//! reference. Every row is computed alone and in a fixed order, so a result does not depend on what
//! else a call holds.

mod attend;
mod keys;
mod matrix;
mod packing;
mod pool;
mod rows;
mod select;
mod simd;
mod step;
mod streams;
mod threads;

/// Changes with every change of a signature; the loader refuses another.
pub const INTERFACE: u32 = 6;

#[no_mangle]
pub extern "C" fn baleen_interface() -> u32 {
    INTERFACE
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
