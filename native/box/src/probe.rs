//! What this kernel allows this user, tried for real in a throw-away child; one line `name=value` each.

use crate::cradle::map_only;
use crate::landlock;
use crate::layers;
use crate::sys::*;
use crate::zygote::new_range;
use std::fs;
use std::os::fd::AsRawFd;

const FIRST_PROBED_ID: i64 = 0x7000_0000;

pub fn main() -> i32 {
    let ids = unsafe { (getuid(), getgid()) };
    let privileged = privileged();
    let root = privileged.is_ok();
    let enter = move || if root { Ok(()) } else { map_only(ids) };
    report("privileged", privileged);
    let flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET;
    let flags = if root { flags } else { flags | CLONE_NEWUSER };
    report("user_namespace", try_in_child(CLONE_NEWUSER, || Ok(())));
    report("namespaces", try_in_child(flags, enter));
    report("mounts", try_in_child(flags, move || enter().and_then(|()| mounts())));
    report("idmap", try_in_child(CLONE_NEWNS, idmap));
    report("overlay", try_in_child(flags, move || enter().and_then(|()| overlay(root))));
    report("proc", try_in_child(flags, move || enter().and_then(|()| fresh_proc())));
    report("landlock", landlock::version().map(drop));
    report("erofs_file", try_in_child(CLONE_NEWNS, || erofs("file")));
    report("erofs_loop", try_in_child(CLONE_NEWNS, || erofs("loop")));
    0
}

fn report(name: &str, result: Res<()>) {
    match result {
        Ok(()) => println!("{name}=ok"),
        Err(fail) => println!("{name}={}", fail.text()),
    }
}

/// Whether boxes can have id ranges of their own and mounts made from outside their user namespace.
fn privileged() -> Res<()> {
    try_in_child(CLONE_NEWNS | CLONE_NEWPID, || mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, ""))?;
    new_range(FIRST_PROBED_ID).map(drop)
}

fn fresh_proc() -> Res<()> {
    mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, "")?;
    mount_fs("proc", "/proc", "proc", 0, "")
}

fn mounts() -> Res<()> {
    mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, "")?;
    mount_fs("tmpfs", "/tmp", "tmpfs", 0, "size=64k")?;
    clone_tree("/usr", true).map(drop)
}

/// Whether this host's programs can be shown under a box's own ids.
fn idmap() -> Res<()> {
    mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, "")?;
    let range = new_range(FIRST_PROBED_ID)?;
    set_mount_attr(&clone_tree("/usr", false)?, MOUNT_ATTR_RDONLY, Some(&range))
}

fn overlay(root: bool) -> Res<()> {
    mounts()?;
    for name in ["lower", "upper", "work", "all"] {
        fs::create_dir(format!("/tmp/{name}")).named("mkdir for overlay")?;
    }
    let extra = if root { "" } else { ",userxattr" };
    let options = format!("lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work{extra}");
    mount_fs("overlay", "/tmp/all", "overlay", 0, &options)
}

/// Whether image layers can be mounted, `how` being "file" or "loop".
fn erofs(how: &str) -> Res<()> {
    mount_fs("none", "/", "none", MS_REC | MS_PRIVATE, "")?;
    // Not on a tmpfs: the kernel mounts files of disk file systems only.
    let image = std::env::temp_dir().join(format!("baleen-probe-{}-{how}.erofs", std::process::id()));
    fs::write(&image, layers::smallest_image()).named("write a probe image")?;
    let result = layers::mount_image(&image.to_string_lossy(), how).map(drop);
    let _ = fs::remove_file(&image);
    result
}

/// Runs `work` in new namespaces; the child's failure comes back through a pipe.
fn try_in_child(flags: u64, work: impl Fn() -> Res<()>) -> Res<()> {
    let (ours, theirs) = pipe()?;
    let pid = match clone_into(flags)? {
        0 => {
            if let Err(fail) = work() {
                let _ = write_all(theirs.as_raw_fd(), &[&fail.errno.to_le_bytes()[..], fail.what.as_bytes()].concat());
            }
            unsafe { _exit(0) }
        }
        pid => pid,
    };
    drop(theirs);
    let mut answer = vec![0; 4096];
    let got = read_some(ours.as_raw_fd(), &mut answer)?.unwrap_or(0);
    wait_pid(pid);
    if got < 4 {
        return Ok(());
    }
    let errno = i32::from_le_bytes([answer[0], answer[1], answer[2], answer[3]]);
    Err(Fail { what: String::from_utf8_lossy(&answer[4..got]).into_owned(), errno })
}
