//! Image layers: EROFS files, each mounted once and shared by all boxes that stand on it.
//!
//! The mounts live in a namespace of their own, the keeper: nobody on the host sees them, they end
//! with the last process that stands on them, and their page cache is one for all boxes.

use crate::sys::*;
use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

const ENOTBLK: i32 = 15;
const EBUSY: i32 = 16;
const LOOP_ATTEMPTS: u32 = 16;

extern "C" {
    fn fchdir(fd: c_int) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
}

/// The namespace that holds the mounted layers, by file name.
pub struct Keeper {
    namespace: OwnedFd,
    mounted: HashMap<String, String>,
}

impl Keeper {
    /// Makes the namespace: an empty tmpfs as its root, nothing of the host.
    pub fn start(stage: &str) -> Res<Keeper> {
        let (ours, theirs) = stream_pair()?;
        let pid = match clone_into(CLONE_NEWNS)? {
            0 => {
                drop(ours);
                if empty_root(stage).is_ok() {
                    let _ = write_all(theirs.as_raw_fd(), b"r");
                    let _ = read_exact(theirs.as_raw_fd(), &mut [0]);
                }
                unsafe { _exit(0) }
            }
            pid => pid,
        };
        drop(theirs);
        let ready = read_exact(ours.as_raw_fd(), &mut [0]);
        let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).named("open the keeper's namespace");
        drop(ours);
        wait_pid(pid);
        ready.map_err(|fail| Fail { what: format!("cannot make the layers' namespace: {}", fail.what), ..fail })?;
        Ok(Keeper { namespace: namespace?.into(), mounted: HashMap::new() })
    }

    pub fn namespace(&self) -> &OwnedFd {
        &self.namespace
    }

    /// Mounts a layer unless it is mounted; `how` is "auto", "file" or "loop".
    pub fn hold(&mut self, image: &str, how: &str) -> Res<()> {
        let name = name_of(image);
        if self.mounted.contains_key(&name) {
            return Ok(());
        }
        let mount = mount_image(image, how)?;
        within(&self.namespace, || {
            fs::create_dir(format!("/{name}")).named(format!("mkdir for layer {name}"))?;
            attach_mount(&mount, &open_path(&format!("/{name}"))?, &name)
        })?;
        self.mounted.insert(name, image.to_string());
        Ok(())
    }

    /// Lets go of the layers whose files were removed; boxes on them keep them.
    pub fn sweep(&mut self) {
        let gone: Vec<String> =
            self.mounted.iter().filter(|(_, image)| !Path::new(image).exists()).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.mounted.remove(&name);
            let _ = within(&self.namespace, || {
                unmount_detached(&format!("/{name}"))?;
                fs::remove_dir(format!("/{name}")).named("rmdir of a layer")
            });
        }
    }
}

fn empty_root(stage: &str) -> Res<()> {
    mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, "")?;
    mount_fs("tmpfs", stage, "tmpfs", MS_NOSUID | MS_NODEV, "mode=700,size=1m")?;
    std::env::set_current_dir(stage).named("chdir to stage")?;
    pivot_here()
}

fn name_of(image: &str) -> String {
    Path::new(image).file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned())
}

/// A detached copy of a layer's mount, for a box to put into place.
pub fn tree(namespace: &OwnedFd, image: &str) -> Res<OwnedFd> {
    within(namespace, || clone_tree(&format!("/{}", name_of(image)), false))
}

/// Works in another mount namespace and comes back, also where the caller lives in a chroot.
fn within<T>(namespace: &OwnedFd, work: impl FnOnce() -> Res<T>) -> Res<T> {
    let own = fs::File::open("/proc/self/ns/mnt").named("open own mount namespace")?;
    let (root, cwd) = (open_path("/")?, open_path(".")?);
    let kind = CLONE_NEWNS as c_int;
    check(unsafe { setns(namespace.as_raw_fd(), kind) }.into(), "enter the layers' namespace")?;
    let result = work();
    let dot = c".".as_ptr();
    let back = unsafe {
        setns(own.as_raw_fd(), kind) == 0
            && fchdir(root.as_raw_fd()) == 0
            && chroot(dot) == 0
            && fchdir(cwd.as_raw_fd()) == 0
    };
    if !back {
        unsafe { _exit(1) } // in the wrong namespace every further step would be wrong
    }
    result
}

/// A detached, read-only mount of an EROFS file: by the file itself since Linux 6.12, else by a loop device.
pub fn mount_image(image: &str, how: &str) -> Res<OwnedFd> {
    if how != "loop" {
        match mount_source(image) {
            Err(fail) if how != "file" && fail.errno == ENOTBLK => {}
            result => return result,
        }
    }
    let (device, path) = loop_device(image)?;
    let mount = mount_source(&path);
    drop(device); // the mount keeps it; it goes when the mount goes
    mount
}

fn mount_source(source: &str) -> Res<OwnedFd> {
    const SYS_FSOPEN: c_long = 430;
    const SYS_FSCONFIG: c_long = 431;
    const SYS_FSMOUNT: c_long = 432;
    const SET_FLAG: c_uint = 0;
    const SET_STRING: c_uint = 1;
    const CREATE: c_uint = 6;
    let none: *const c_char = std::ptr::null();
    let context = owned(unsafe { syscall(SYS_FSOPEN, c"erofs".as_ptr(), 1) }, "fsopen erofs")?;
    let fd = context.as_raw_fd();
    let path = cstr(source)?;
    check(unsafe { syscall(SYS_FSCONFIG, fd, SET_STRING, c"source".as_ptr(), path.as_ptr(), 0) }, "erofs source")?;
    check(unsafe { syscall(SYS_FSCONFIG, fd, SET_FLAG, c"ro".as_ptr(), none, 0) }, "erofs read-only")?;
    check(unsafe { syscall(SYS_FSCONFIG, fd, CREATE, none, none, 0) }, &format!("mount layer {source}"))?;
    owned(unsafe { syscall(SYS_FSMOUNT, fd, 1, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV) }, &format!("fsmount {source}"))
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: [u64; 29],
    reserved: [u64; 8],
}

/// A loop device on the file, read-only, which the kernel frees after its last user.
fn loop_device(image: &str) -> Res<(fs::File, String)> {
    const LOOP_CTL_GET_FREE: c_ulong = 0x4C82;
    const LOOP_CONFIGURE: c_ulong = 0x4C0A;
    const READ_ONLY_AUTOCLEAR: u64 = 1 | 4;
    const FLAGS_WORD: usize = 6; // lo_flags is the second half of the seventh word of loop_info64
    let file = fs::File::open(image).named(format!("open layer {image}"))?;
    let control = fs::File::open("/dev/loop-control").named("open /dev/loop-control")?;
    for _ in 0..LOOP_ATTEMPTS {
        let number = check(unsafe { ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }.into(), "find a free loop device")?;
        let path = format!("/dev/loop{number}");
        let device = fs::File::open(&path).named(format!("open {path}"))?;
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = file.as_raw_fd() as u32;
        config.info[FLAGS_WORD] = READ_ONLY_AUTOCLEAR << 32;
        let address = &config as *const LoopConfig as *const c_void;
        let result = check(unsafe { ioctl(device.as_raw_fd(), LOOP_CONFIGURE, address) }.into(), &format!("set up {path}"));
        match result {
            Ok(_) => return Ok((device, path)),
            Err(fail) if fail.errno == EBUSY => {} // somebody was faster
            Err(fail) => return Err(fail),
        }
    }
    Err(Fail { what: "every free loop device is taken at once".into(), errno: EBUSY })
}

/// The smallest EROFS image: an empty directory. For trying what this kernel mounts.
pub fn smallest_image() -> Vec<u8> {
    const SUPERBLOCK: usize = 1024;
    const ROOT: usize = SUPERBLOCK + 128;
    let mut image = vec![0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(SUPERBLOCK, &0xE0F5_E1E2u32.to_le_bytes());
    put(SUPERBLOCK + 12, &[12, 0]); // blocks of 4096
    put(SUPERBLOCK + 14, &((ROOT / 32) as u16).to_le_bytes());
    put(SUPERBLOCK + 16, &1u64.to_le_bytes());
    put(SUPERBLOCK + 36, &1u32.to_le_bytes());
    put(ROOT, &[5, 0, 0, 0, 0xED, 0x41]); // extended inode with inline data, a directory of mode 755
    put(ROOT + 8, &27u64.to_le_bytes());
    put(ROOT + 16, &u32::MAX.to_le_bytes());
    put(ROOT + 44, &2u32.to_le_bytes());
    for (index, offset) in [24u16, 25].into_iter().enumerate() {
        let entry = ROOT + 64 + 12 * index;
        put(entry, &((ROOT / 32) as u64).to_le_bytes());
        put(entry + 8, &offset.to_le_bytes());
        put(entry + 10, &[2]);
    }
    put(ROOT + 64 + 24, b"...");
    image
}
