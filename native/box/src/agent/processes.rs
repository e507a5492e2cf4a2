//! The process tree of the box, read from its own /proc.

use crate::sys::{send_signal, SIGKILL};
use std::collections::{HashMap, HashSet};
use std::fs;

/// Parent of every process of the box. Zombies are left out: they need no signal.
fn parents() -> HashMap<i32, i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and brackets: fields count from the last ')'.
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(parent)
}

/// Kills every descendant of `ancestor`; returns how many there were.
pub fn kill_descendants(ancestor: i32) -> usize {
    let parents = parents();
    let is_below = |mut pid: i32| {
        let mut seen = HashSet::new();
        while let Some(parent) = parents.get(&pid) {
            if *parent == ancestor {
                return true;
            }
            if !seen.insert(pid) {
                return false;
            }
            pid = *parent;
        }
        false
    };
    let victims: Vec<i32> = parents.keys().copied().filter(|pid| is_below(*pid)).collect();
    victims.iter().for_each(|pid| send_signal(*pid, SIGKILL));
    victims.len()
}

/// Whether none of these processes runs. A zombie counts as gone: its children have been handed on.
pub fn are_gone(pids: &[i32]) -> bool {
    let left = parents();
    pids.iter().all(|pid| !left.contains_key(pid))
}

/// Kills the children of process 1 that are neither the spawner nor a known supervisor: they exist
/// only where somebody killed the supervisor that had adopted them.
pub fn kill_orphans(spawner: i32, supervisors: &[i32]) -> usize {
    let keep = |pid: i32| pid == spawner || supervisors.contains(&pid);
    let victims: Vec<i32> =
        parents().into_iter().filter(|(pid, parent)| *parent == 1 && !keep(*pid)).map(|(pid, _)| pid).collect();
    for pid in &victims {
        kill_descendants(*pid);
        send_signal(*pid, SIGKILL);
    }
    victims.len()
}
