const { exec } = require("child_process");
const fs = require("fs");

function run(req, res) {
  exec("ping -c 1 " + req.query.host);
  fs.readFileSync(req.query.file);
  eval(req.body.code);
}

module.exports = { run };
