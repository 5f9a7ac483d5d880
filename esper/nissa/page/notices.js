// What is said in place of a run: that there is none yet, that it is not there, or that its reader may not see it.

import { el } from "./format.js";

const at = (id) => document.getElementById(id);

export function say(heading, ...content) {
  at("notice").replaceChildren(el("h1", {}, heading), ...content.filter(Boolean));
  at("notice").hidden = false;
}

export const saying = () => !at("notice").hidden;

export const silence = () => {
  at("notice").hidden = true;
  at("notice").replaceChildren();
};

function hideRun() {
  at("content").hidden = true;
  at("transport").hidden = true;
}

const command = (text) => el("pre", {}, el("code", {}, text));

export function sayEmpty() {
  hideRun();
  say(
    "No run yet",
    el("p", {}, "Start one in the folder that this server reads; it appears here by itself."),
    command("esper train +experiment=smoke"),
  );
}

// Words for an error of the server. One that may pass leaves the run that is shown where it is.
export function sayTrouble(error, shown) {
  switch (error.status) {
    case 401:
      hideRun();
      say(
        "Not signed in",
        el(
          "p",
          {},
          "This server asks for a token, and yours is missing or has run out. Issue one, then open this page with ",
          el("code", {}, "/?token=TOKEN"),
          ", once.",
        ),
        command("esper token issue --person --role viewer --for NAME"),
      );
      break;
    case 403:
      hideRun();
      say(
        "Not allowed",
        el("p", {}, "Your token is good, but its role may not read this. Ask for the role viewer."),
        el("p", { class: "sub" }, error.message),
      );
      break;
    case 404:
      hideRun();
      say(
        "No such run",
        el("p", {}, error.message),
        el("p", {}, el("a", { href: "#" }, "Show the latest run"), " or choose one above."),
      );
      break;
    default:
      if (!shown)
        say(
          "No answer",
          el("p", {}, error.message),
          error.hint ? el("p", {}, error.hint) : null,
          el("p", { class: "sub" }, "Trying again."),
        );
  }
}
