//! `mksgate desk`: what the ticket desk's files need.

use std::error::Error;
use std::io::{IsTerminal, Read};

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use crate::desk::users::{self, MAX_PASSWORD};

/// `mksgate desk …`
#[derive(Args)]
pub struct DeskCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Hash a password for the users' file; asked for on the terminal, or read from standard input
    Password {
        /// Print the user's whole section instead of the hash alone
        #[arg(value_name = "USER@ORG")]
        user: Option<String>,
    },
}

impl DeskCommand {
    /// Does it.
    pub fn run(self) -> Result<(), Box<dyn Error>> {
        let What::Password { user } = self.what;
        if let Some(user) = &user {
            let named = user.split_once('@').is_some_and(|(name, org)| !name.is_empty() && !org.is_empty());
            if !named || user.contains(['"', '\\', ':']) || user.contains(char::is_control) {
                return Err("write the user as USER@ORG, without quotes, backslashes and colons".into());
            }
        }
        let password = read()?;
        if password.is_empty() || password.len() > MAX_PASSWORD {
            return Err(format!("a password has 1 to {MAX_PASSWORD} bytes").into());
        }
        let hash = users::hash(&password)?;
        match user {
            Some(user) => println!("[users.\"{user}\"]\npassword = \"{hash}\""),
            None => println!("{hash}"),
        }
        Ok(())
    }
}

fn read() -> Result<Zeroizing<String>, Box<dyn Error>> {
    if std::io::stdin().is_terminal() {
        let password = Zeroizing::new(rpassword::prompt_password("Password: ")?);
        let again = Zeroizing::new(rpassword::prompt_password("Again: ")?);
        return if password == again { Ok(password) } else { Err("the two are not the same".into()) };
    }
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().lock().take(2 * MAX_PASSWORD as u64).read_to_string(&mut text)?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}
