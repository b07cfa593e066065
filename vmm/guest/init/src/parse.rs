//! What is read here and written elsewhere: what to run, and the image's users. Pure.

/// What to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: String,
    pub(crate) user: String,
    pub(crate) stop: String,
}

/// Reads a row of `name=value`, each ended by a zero byte. What is unknown means nothing yet.
pub(crate) fn run(bytes: &[u8]) -> Run {
    let mut run = Run::default();
    for record in bytes.split(|&byte| byte == 0) {
        let record = String::from_utf8_lossy(record);
        let Some((name, value)) = record.split_once('=') else { continue };
        match name {
            "argument" => run.arguments.push(value.to_owned()),
            "environment" => {
                let (name, value) = value.split_once('=').unwrap_or((value, ""));
                run.environment.push((name.to_owned(), value.to_owned()));
            }
            "directory" => value.clone_into(&mut run.directory),
            "user" => value.clone_into(&mut run.user),
            "stop" => value.clone_into(&mut run.stop),
            _ => {}
        }
    }
    run
}

/// Who a program runs as.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Who `user` or `user:group` is, by `/etc/passwd` and `/etc/group`; each by name or number. The name of whoever is not
/// there if somebody is not.
pub(crate) fn identity<'w>(wish: &'w str, passwd: &str, group: &str) -> Result<Identity, &'w str> {
    let (user, wished_group) = wish.split_once(':').unwrap_or((wish, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let mut rows = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let row = rows.find(|row| {
        row.first() == Some(&user)
            || number.is_some() && row.get(2).and_then(|uid| uid.parse().ok()) == number
    });
    let field = |index: usize| row.as_ref().and_then(|row| row.get(index).copied());
    let uid = field(2).and_then(|uid| uid.parse().ok()).or(number).ok_or(user)?;
    let named = |wanted: &str| {
        let mut rows = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
        rows.find(|row| row.first() == Some(&wanted)).and_then(|row| row.get(2)?.parse::<u32>().ok())
    };
    let gid = match wished_group {
        "" => field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0),
        wanted => named(wanted).or_else(|| wanted.parse().ok()).ok_or(wanted)?,
    };
    let groups = match field(0) {
        // Who asks for one group gets that alone.
        Some(name) if wished_group.is_empty() => {
            let member =
                |row: &Vec<&str>| row.get(3).is_some_and(|members| members.split(',').any(|one| one == name));
            let rows = group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(member);
            rows.filter_map(|row| row.get(2)?.parse().ok()).collect()
        }
        _ => Vec::new(),
    };
    let home = field(5).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(Identity { uid, gid, groups, home })
}

/// A signal by its name, with or without `SIG`, or its number.
pub(crate) fn signal_name(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_uppercase();
    match text.as_str() {
        "" => None,
        name if name.starts_with("SIG") => Some(text),
        name if name.bytes().all(|byte| byte.is_ascii_digit()) => Some(text),
        name => Some(format!("SIG{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:a,web\ndocker:x:50:web\nbroken";

    #[test]
    fn what_to_run_is_read_back_and_the_unknown_is_passed_over() {
        let bytes = b"argument=/bin/sh\0argument=-c\0argument=a=b\nc\0environment=A=1=2\0environment=B\0\
                      directory=/srv\0user=web\0stop=SIGQUIT\0later=x\0nonsense\0";
        let read = run(bytes);
        assert_eq!(read.arguments, ["/bin/sh", "-c", "a=b\nc"]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read.environment, [pair("A", "1=2"), pair("B", "")]);
        assert_eq!(
            (read.directory.as_str(), read.user.as_str(), read.stop.as_str()),
            ("/srv", "web", "SIGQUIT")
        );
        assert_eq!(run(b""), Run::default());
    }

    #[test]
    fn users_are_found_by_name_and_number_and_strangers_are_named() {
        let of = |wish| identity(wish, PASSWD, GROUP);
        let web = Identity { uid: 33, gid: 34, groups: vec![40, 50], home: "/srv".to_owned() };
        assert_eq!(of("web"), Ok(web));
        assert_eq!(of("33").map(|identity| identity.gid), Ok(34));
        let root = Identity { uid: 0, gid: 0, groups: vec![], home: "/root".to_owned() };
        assert_eq!(of(""), Ok(root));
        let one = Identity { uid: 33, gid: 40, groups: vec![], home: "/srv".to_owned() };
        assert_eq!(of("web:logs"), Ok(one));
        let nobody = Identity { uid: 1234, gid: 99, groups: vec![], home: "/".to_owned() };
        assert_eq!(of("1234:99"), Ok(nobody));
        assert_eq!(of("stranger"), Err("stranger"));
        assert_eq!(of("web:strangers"), Err("strangers"));
        assert_eq!(identity("web", "", ""), Err("web"));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_name("quit").as_deref(), Some("SIGQUIT"));
        assert_eq!(signal_name("SIGINT").as_deref(), Some("SIGINT"));
        assert_eq!(signal_name("15").as_deref(), Some("15"));
        assert_eq!(signal_name(" "), None);
    }
}
