//! Deletions in the identity service that take more than one commit, cut off before each of them: asked for again they are
//! finished, and nothing of what went is left or keeps its name.

use super::*;
use crate::model::identity::{Assignment, AssignmentTarget, Domain, Group, GroupMember, Project, Role, User};
use crate::service::identity::{DEFAULT_DOMAIN_ID, Entity};

/// More of each kind than one transaction of a deletion holds.
const MANY: usize = 120;
/// The domain with all of it.
const DOMAIN: &str = "d";

fn name(kind: &str, number: usize) -> String {
    format!("{kind}-{number}")
}

impl Cloud {
    async fn put_all<T: crate::store::Row>(&self, rows: Vec<T>) {
        for some in rows.chunks(64) {
            let txn = || some.iter().fold(Txn::new(), |txn, row| txn.create(row));
            self.control.db.transact(|_| Ok(txn())).await.unwrap();
        }
    }

    async fn make_all<T: Entity + Clone>(&self, rows: Vec<T>) {
        for some in rows.chunks(32) {
            self.control.entities_create(&self.admin, some).await.unwrap();
        }
    }

    /// A domain of many users, groups, projects, roles, memberships and assignments.
    async fn make_domain(&self) {
        let domain = |id: &str, enabled| Domain {
            id: id.to_owned(),
            name: format!("domain-{id}"),
            enabled,
            ..Domain::default()
        };
        if self.control.db.get::<Domain>(DEFAULT_DOMAIN_ID).is_none() {
            self.make_all(vec![domain(DEFAULT_DOMAIN_ID, true)]).await;
        }
        self.make_all(vec![domain(DOMAIN, false)]).await;
        let domain_id = || DOMAIN.to_owned();
        let users = |number| User {
            id: name("user", number),
            name: name("user", number),
            domain_id: domain_id(),
            ..User::default()
        };
        self.make_all((0..MANY).map(users).collect()).await;
        let groups = |number| Group {
            id: name("group", number),
            name: name("group", number),
            domain_id: domain_id(),
            ..Group::default()
        };
        self.make_all((0..MANY).map(groups).collect()).await;
        let project = |number: usize, parent: Option<usize>| Project {
            id: name("project", number),
            name: name("project", number),
            domain_id: domain_id(),
            parent_id: parent.map(|parent| name("project", parent)),
            ..Project::default()
        };
        self.make_all((0..4).map(|number| project(number, None)).collect()).await;
        self.make_all((4..12).map(|number| project(number, Some(number % 4))).collect()).await;
        let role = Role {
            id: "role".to_owned(),
            name: "role".to_owned(),
            domain_id: Some(domain_id()),
            ..Role::default()
        };
        self.make_all(vec![role]).await;
        // The first user is in all groups, the first group has all users, and both may do something everywhere.
        let mut members: Vec<_> = (0..MANY).map(|n| GroupMember::new("user-0", &name("group", n))).collect();
        members.extend((1..MANY).map(|n| GroupMember::new(&name("user", n), "group-0")));
        self.put_all(members).await;
        let of = |user: &str, project: &str| {
            Assignment::new(user, "role", AssignmentTarget::Project(project.to_owned()))
        };
        let mut assignments: Vec<_> = (0..MANY).map(|n| of(&name("user", n), "project-5")).collect();
        assignments.extend((0..12).filter(|n| *n != 5).map(|n| of("user-0", &name("project", n))));
        assignments.push(Assignment::new("user-0", "role", AssignmentTarget::Domain(domain_id())));
        self.put_all(assignments).await;
    }

    /// The rows that have to do with what a deletion is about.
    fn rows_of(&self, what: &str) -> usize {
        let cache = self.control.db.cache();
        let project = AssignmentTarget::Project(what.to_owned());
        match what {
            DOMAIN => {
                cache.filter::<User>(|row| row.domain_id == DOMAIN).len()
                    + cache.filter::<Group>(|row| row.domain_id == DOMAIN).len()
                    + cache.filter::<Project>(|row| row.domain_id == DOMAIN).len()
                    + cache.filter::<Role>(|row| row.domain_id.as_deref() == Some(DOMAIN)).len()
                    + cache.list::<GroupMember>().len()
                    + cache.filter::<Assignment>(|row| row.role_id == "role").len()
                    + usize::from(cache.get::<Domain>(DOMAIN).is_some())
            }
            _ => {
                usize::from(cache.get::<User>(what).is_some())
                    + usize::from(cache.get::<Group>(what).is_some())
                    + usize::from(cache.get::<Project>(what).is_some())
                    + cache.filter::<GroupMember>(|row| row.user_id == what || row.group_id == what).len()
                    + cache.filter::<Assignment>(|row| row.actor_id == what || row.target == project).len()
            }
        }
    }

    async fn deleted(&self, what: &str) -> Result<()> {
        let (control, admin) = (&self.control, &self.admin);
        match what.split('-').next() {
            Some("user") => control.entity_delete::<User>(admin, what).await,
            Some("group") => control.entity_delete::<Group>(admin, what).await,
            Some("project") => control.entity_delete::<Project>(admin, what).await,
            _ => control.entity_delete::<Domain>(admin, what).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_cut_off_at_each_commit_are_finished_when_asked_for_again() {
    for (what, commits_min) in [("project-5", 2), ("user-0", 2), ("group-0", 2), (DOMAIN, 5)] {
        let mut commits = 0;
        loop {
            let mut cloud = Cloud::new().await;
            cloud.make_domain().await;
            let before = cloud.rows_of(what);
            assert!(before > MANY, "{what}: {before}");
            cloud.process.dies_after(commits);
            let answer = cloud.deleted(what).await;
            let died = cloud.process.is_dead();
            assert!(died || answer.is_ok(), "{what}: {answer:?}");
            cloud.die().await;
            cloud.reopen().await;
            if answer.is_err() {
                // What was asked for is there until the last of it has gone, so that it can be asked for again.
                assert!((1..=before).contains(&cloud.rows_of(what)), "{what}, {commits}");
                cloud.deleted(what).await.unwrap();
            }
            assert_eq!(cloud.rows_of(what), 0, "{what}, cut off at {commits}");
            if what == DOMAIN {
                // No name is taken any more.
                cloud.make_domain().await;
            }
            if !died {
                break;
            }
            commits += 1;
        }
        assert!(commits >= commits_min, "{what} takes {commits} commits");
    }
}
