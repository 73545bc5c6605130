// Goes through the App's whole way with octokit: App JWT, installation token, just-in-time registration, fence.
// Reads API_URL, APP_ID, PRIVATE_KEY and ORG; prints what it saw as JSON.
import { App, Octokit } from "octokit";

const { API_URL: baseUrl, APP_ID: appId, PRIVATE_KEY: privateKey, ORG: org } = process.env;
const app = new App({ appId, privateKey, Octokit: Octokit.defaults({ baseUrl, retry: { enabled: false } }) });
const seen = {};

seen.slug = (await app.octokit.request("GET /app")).data.slug;
const installation = (await app.octokit.request("GET /orgs/{org}/installation", { org })).data;
seen.installation = installation.id;
const octokit = await app.getInstallationOctokit(installation.id);
seen.repositories = [];
for await (const { repository } of app.eachRepository.iterator({ installationId: installation.id })) {
  seen.repositories.push(repository.full_name);
}

const made = await octokit.rest.actions.generateRunnerJitconfigForOrg({
  org,
  name: "from-octokit",
  runner_group_id: 1,
  labels: ["self-hosted", "ironcd"],
});
seen.status = made.status;
seen.files = Object.keys(JSON.parse(Buffer.from(made.data.encoded_jit_config, "base64").toString()));
try {
  await octokit.rest.actions.generateRunnerJitconfigForOrg({ org, name: "from-octokit", runner_group_id: 1, labels: ["x"] });
} catch (error) {
  seen.conflict = error.status;
}
for (let number = 0; number < 2; number++) {
  await octokit.rest.actions.generateRunnerJitconfigForOrg({ org, name: `more-${number}`, runner_group_id: 1, labels: ["x"] });
}
const runners = await octokit.paginate(octokit.rest.actions.listSelfHostedRunnersForOrg, { org, per_page: 2 });
seen.runners = runners.map((runner) => runner.name);
seen.deleted = (await octokit.rest.actions.deleteSelfHostedRunnerFromOrg({ org, runner_id: made.data.runner.id })).status;
try {
  await octokit.rest.actions.deleteSelfHostedRunnerFromOrg({ org, runner_id: made.data.runner.id });
} catch (error) {
  seen.deletedTwice = error.status;
}
const deliveries = await app.octokit.request("GET /app/hook/deliveries", { per_page: 5 });
seen.deliveries = deliveries.data.map((item) => [item.event, item.status_code]);
console.log(JSON.stringify(seen));
