// The two questions that the page asks: who you are, and whether you mean it.

const $ = (id) => document.getElementById(id);

async function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue;
}

let signingIn = null;

/** Ask for an access token; null if there is none. Asked twice at once, it is one dialog. */
export function askForToken(wasRefused) {
  signingIn ??= (async () => {
    $("sign-in-wrong").hidden = !wasRefused;
    $("token").value = "";
    const answer = await ask($("sign-in"));
    const token = $("token").value.trim();
    $("token").value = "";
    return answer === "sign-in" ? token || null : null;
  })().finally(() => {
    signingIn = null;
  });
  return signingIn;
}

/** Ask whether to delete a conversation. */
export async function askToDelete() {
  return (await ask($("confirm"))) === "yes";
}
