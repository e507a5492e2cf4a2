//! Users of the box, read from its own `/etc/passwd` and `/etc/group`.

use crate::sys::{Fail, Res};
use std::fs;

pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

impl User {
    pub fn root() -> User {
        User { uid: 0, gid: 0, groups: Vec::new(), home: "/root".into() }
    }

    /// Finds "name", "uid", "name:group" or "uid:gid".
    pub fn find(spec: &str) -> Res<User> {
        let (who, group) = spec.split_once(':').map_or((spec, None), |(a, b)| (a, Some(b)));
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let row = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>())
            .find(|row| row.len() >= 6 && (row[0] == who || row[2] == who));
        let mut user = match row {
            Some(row) => User {
                uid: number(row[2], spec)?,
                gid: number(row[3], spec)?,
                groups: groups_of(row[0]),
                home: row[5].to_string(),
            },
            None => {
                let uid = number(who, spec)?;
                User { uid, gid: uid, groups: Vec::new(), home: "/".into() }
            }
        };
        if let Some(group) = group {
            user.gid = group_of(group, spec)?;
        }
        Ok(user)
    }
}

fn number(text: &str, spec: &str) -> Res<u32> {
    let unknown = |_| Fail { what: format!("no user {spec:?} in this box's /etc/passwd"), errno: 0 };
    text.parse().map_err(unknown)
}

fn group_of(name: &str, spec: &str) -> Res<u32> {
    let table = fs::read_to_string("/etc/group").unwrap_or_default();
    let row = table.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|row| row.len() > 2 && row[0] == name);
    let unknown = |_| Fail { what: format!("no group {name:?} of user {spec:?} in this box's /etc/group"), errno: 0 };
    row.map_or(name, |row| row[2]).parse().map_err(unknown)
}

fn groups_of(name: &str) -> Vec<u32> {
    let table = fs::read_to_string("/etc/group").unwrap_or_default();
    table.lines().map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|row| row.len() == 4 && row[3].split(',').any(|member| member == name))
        .filter_map(|row| row[2].parse().ok())
        .collect()
}
