//! Control groups as the edge planned them: directories to make, files to write. Which controllers
//! and file names exist is the edge's knowledge, so v1 and v2 look the same from here.

use crate::sys::{send_signal, Fail, Named, Res, ENOENT, SIGKILL};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// The directories of one box: one per v1 controller, or a single one on v2.
#[derive(Clone, Default)]
pub struct Group {
    pub dirs: Vec<String>,
}

impl Group {
    /// Makes `name` below each parent; nothing is left behind on failure.
    pub fn create(parents: &[String], name: &str) -> Res<Group> {
        let mut group = Group::default();
        for parent in parents {
            let dir = format!("{parent}/{name}");
            if let Err(error) = fs::create_dir(&dir).named(format!("mkdir {dir}")) {
                group.remove();
                return Err(error);
            }
            group.dirs.push(dir);
        }
        Ok(group)
    }

    /// Writes (file name, value) into whichever directory has the file.
    pub fn limit(&self, file: &str, value: &str) -> Res<()> {
        for dir in &self.dirs {
            let path = format!("{dir}/{file}");
            match fs::OpenOptions::new().write(true).open(&path) {
                Ok(mut open) => return open.write_all(value.as_bytes()).named(format!("write {value} to {path}")),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Fail::of(format!("open {path}"), &error)),
            }
        }
        Err(Fail { what: format!("no control group offers {file}"), errno: ENOENT })
    }

    /// Moves the calling process in. The first move after a pause waits for an RCU grace period (about
    /// 10 ms), so it happens in a process that nobody waits for.
    pub fn join(&self) -> Res<()> {
        for dir in &self.dirs {
            let path = format!("{dir}/cgroup.procs");
            fs::write(&path, "0").named(format!("join {path}"))?;
        }
        Ok(())
    }

    /// Kills what is in the groups: the last resort where process 1 could not take it along.
    pub fn kill(&self) {
        for dir in &self.dirs {
            let pids = fs::read_to_string(format!("{dir}/cgroup.procs")).unwrap_or_default();
            pids.lines().filter_map(|pid| pid.parse().ok()).for_each(|pid| send_signal(pid, SIGKILL));
        }
    }

    /// Removes the directories; false while a process is still in one.
    pub fn remove(&self) -> bool {
        let gone = |dir: &String| fs::remove_dir(dir).is_ok() || !Path::new(dir).exists();
        self.dirs.iter().map(gone).fold(true, |all, one| all && one)
    }
}
